"""Parquet files, saved data sets and the Hub -> numbered records.

Text, numbers, times and what is made of them are decoded; images, sounds and other bytes are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune import hub
from fasttune.data.text_files import Record, require_few_columns
from fasttune.errors import FasttuneError, did_you_mean, reason
from fasttune.files import read_regular
from fasttune.terminal import quiet

if TYPE_CHECKING:
    import pyarrow

BATCH = 64
"""Rows that are decoded at a time."""
UNPACKED, RATIO = 2**30, 200
"""A Parquet file that unpacks to more bytes, and to so many times its size, is refused."""


class Undecoded:
    """Stands for a value of a type that is not decoded."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __str__(self) -> str:
        return f"<{self.kind}>"


def read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            facts = file.metadata
            size = sum(facts.row_group(at).total_byte_size for at in range(facts.num_row_groups))
            if size > max(UNPACKED, RATIO * path.stat().st_size):
                raise FasttuneError(
                    f"the file unpacks to {size / 1e9:.1f} GB",
                    f"{path}: {path.stat().st_size / 1e6:.1f} MB",
                    "write it again with fewer rows",
                )
            require_few_columns(len(file.schema_arrow), path)
            yield from _numbered(file.iter_batches(BATCH))
    except (ValueError, OverflowError, MemoryError, OSError) as error:
        # pyarrow's own errors are these
        raise FasttuneError("the file is not Parquet", str(path), reason(error)) from error


def read_saved(folder: Path, split: str) -> Iterator[Record]:
    """The rows of a folder that save_to_disk of datasets has written."""
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = saved_splits(folder)
        if split not in names:
            raise FasttuneError(
                f"there is no split '{split}'", str(folder), did_you_mean(split, names)
            )
        folder = folder / split
    import pyarrow

    def batches() -> Iterator[pyarrow.RecordBatch]:
        for name in _state(folder):
            file = folder / name
            if not file.is_file() or file.parent != folder:
                raise ValueError(f"{name} is missing")
            with pyarrow.OSFile(str(file)) as stream, pyarrow.ipc.open_stream(stream) as opened:
                require_few_columns(len(opened.schema), file)
                for batch in opened:
                    batch.validate(full=True)  # offsets may lead outside of it
                    yield batch

    try:
        yield from _numbered(batches())
    except (ValueError, OverflowError, MemoryError, OSError, pyarrow.ArrowException) as error:
        raise FasttuneError(
            "the folder holds no data set",
            f"{folder}: {reason(error)}",
            "give a file, or a folder that save_to_disk of datasets has written, or one with "
            f"{split}.jsonl or the like in it",
        ) from error


def saved_splits(folder: Path) -> list[str]:
    """The splits of a saved data set; [] if it has none."""
    try:
        names = json.loads(read_regular(folder / "dataset_dict.json"))["splits"]
        return [str(name) for name in names if Path(str(name)).name == name]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def _state(folder: Path) -> list[str]:
    """The names of a saved data set's Arrow files."""
    try:
        state = json.loads(read_regular(folder / "state.json"))
        return [each["filename"] for each in state["_data_files"]]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError("state.json is damaged") from error


def read_hub(name: str, split: str) -> Iterator[Record]:
    import datasets

    repository, _, configuration = name.partition(":")
    # Without the Hub, datasets tells in a log which copy of its cache it takes.
    silence = quiet() if hub.reach(repository) else nullcontext()
    try:
        with silence:
            rows = datasets.load_dataset(repository, configuration or None, split=split)
    except Exception as error:  # datasets, huggingface_hub and the network each have their own
        why = f"{type(error).__name__}: {reason(error)}"
        if hub.lacks(repository, error):
            why = f"{hub.why_offline()}, and the cache does not hold the data set"
        raise FasttuneError(
            f"'{name}' is no file here, and loading it from the Hub failed",
            f"split {split}: {why}",
            "for a file, check the path; for the Hub, check the name, the configuration (as in "
            "owner/name:configuration), the split and the connection",
        ) from error
    tables = rows.with_format("arrow").iter(BATCH)
    yield from _numbered(batch for table in tables for batch in table.to_batches())


def _numbered(batches: Iterator[pyarrow.RecordBatch]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            part = batch.slice(start, BATCH)
            names = part.schema.names
            columns = [_values(column) for column in part.columns]
            for values in zip(*columns, strict=True):
                number += 1
                yield number, dict(zip(names, values, strict=True))


def _values(column: pyarrow.Array) -> list[Any]:
    """A column's values: times as text, which may be beyond the year 9999."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_temporal(kind):
        return column.cast(pyarrow.string()).to_pylist()
    if _plain(kind):
        return column.to_pylist()
    hidden = Undecoded(str(kind))
    return [hidden if known else None for known in column.is_valid().to_pylist()]


def _plain(kind: pyarrow.DataType) -> bool:
    """Whether a type is text, a number, or made of such."""
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    if types.is_nested(kind):
        return all(_plain(kind.field(at).type) for at in range(kind.num_fields))
    primitive = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return primitive or text or types.is_null(kind) or types.is_decimal(kind)
