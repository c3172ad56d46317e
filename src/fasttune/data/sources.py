"""Files, folders and the Hub -> numbered records, before anything is checked.

A reader yields (number, record), where a record that could not be read is a `Finding` already.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from fasttune.data.finding import Finding as Finding
from fasttune.data.json_list import kind_of
from fasttune.data.tables import read_hub, read_parquet, read_saved, saved_splits
from fasttune.data.text_files import COLUMNS, Record, read_csv, read_json
from fasttune.errors import FasttuneError

LOOKAHEAD = 1000
HELD_OUT = ("validation", "valid", "val", "dev", "eval", "heldout", "test")
"""What a split to evaluate on is called, the likeliest first."""
NO_ROWS = ("dataset_dict.json", "state.json", "config.json", "manifest.json")
"""A folder with one of these is a saved data set, a model or a run: its JSON files hold no rows."""
SHARD = re.compile(r"-(\d+)-of-(\d+)\b")


def reader(source: str | Path, split: str) -> Iterator[Record]:
    """The records of a source, in order."""
    return chain.from_iterable(records for _, records in readers(source, split))


def beginning(source: str, split: str) -> list[Any]:
    """The records at the start of a source, by which columns and a template are chosen."""
    return [record for _, record in islice(reader(source, split), LOOKAHEAD)]


def columns_of(source: str, split: str = "train") -> list[str]:
    """The columns of these records."""
    rows = (record for record in beginning(source, split) if isinstance(record, dict))
    return list(dict.fromkeys(name for row in rows for name in row))


def readers(source: str | Path, split: str) -> list[tuple[str, Iterator[Record]]]:
    """The files of a source by name, and the records of each. A source of one file, or without any,
    has the name "" for it."""
    if not str(source).strip() or "\0" in str(source):
        raise FasttuneError(
            "this is no name of a file or data set", repr(str(source)), "give a path or a Hub name"
        )
    path = Path(source).expanduser()
    if path.is_file():
        if kind_of(path) not in READERS:
            hint = f"rename it to end in one of: {', '.join(READERS)}"
            raise FasttuneError("cannot tell the format of the file", str(source), hint)
        if split != "train":
            raise FasttuneError(
                f"a file has no split '{split}'", str(source), "name the file that holds these rows"
            )
        files = [path]
    elif str(source) == "-" or (path.exists() and not path.is_dir()):
        raise FasttuneError(
            "rows are read from a file, whose name tells the format",
            f"{source}: a pipe or a device",
            "write them to a file first, as rows.jsonl",
        )
    else:
        files = files_of(path, split)
    if files:
        return [
            (file.name if len(files) > 1 else "", _read(file, READERS[kind_of(file)](file)))
            for file in files
        ]
    if path.is_dir():
        return [("", _read(path, read_saved(path, split)))]
    looks_like_path = str(source).startswith((".", "/", "~")) or "\\" in str(source)
    if isinstance(source, Path) or looks_like_path or kind_of(path) in READERS:
        raise FasttuneError("no such file", str(path), _nearest(path))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:.*)?", str(source)):
        hint = f"{_nearest(path)}; a data set on the Hub is written owner/name"
        raise FasttuneError("no such file", str(path), hint)
    return [("", read_hub(str(source), split))]


def files_of(path: Path, split: str) -> list[Path]:
    """The files of a split in a folder, or those that a pattern such as `part-*.jsonl` matches.
    Without a file that is named as a split, all files of a folder are its split train."""
    if not path.is_dir():
        named = sorted(path.parent.glob(path.name)) if {*"*?["} & {*path.name} else []
        return [file for file in named if file.is_file() and kind_of(file) in READERS]
    files = [f for f in sorted(path.iterdir()) if kind_of(f) in READERS and f.is_file()]
    named = [file for file in files if re.match(rf"{re.escape(split)}[-_.]", file.name)]
    whole = [file for file in named if file.name.split(".")[0] == split]
    if len(whole) > 1:
        names = ", ".join(file.name for file in whole)
        raise FasttuneError(f"the split '{split}' is there twice", f"{path}: {names}", "name one")
    if named or split != "train" or any((path / name).exists() for name in NO_ROWS):
        return whole or named
    others = re.compile(rf"({'|'.join(HELD_OUT)})[-_.]")
    return [file for file in files if not others.match(file.name)]


def held_out_split(folder: Path) -> str:
    """The split of a folder that is there to evaluate on; "" for none."""
    splits = saved_splits(folder)
    return next((each for each in HELD_OUT if each in splits or files_of(folder, each)), "")


def _read(path: Path, records: Iterator[Record]) -> Iterator[Record]:
    """The records, with the file's name in errors of the system."""
    try:
        for number, record in records:
            if isinstance(record, dict) and len(record) > COLUMNS:
                what = f"has {len(record)} columns, more than {COLUMNS}"
                record = Finding(number, "", what, fatal=True)
            yield number, record
    except OSError as error:
        raise FasttuneError(
            "cannot read the file",
            f"{path}: {error.strerror or error}",
            "check the path, and who may read it",
        ) from error


def _nearest(path: Path) -> str:
    """A hint with the files that are called nearly so."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    names = sorted(entry.name for entry in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, names)
    return f"did you mean {' or '.join(close)}?" if close else "check the path"


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
