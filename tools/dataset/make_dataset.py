"""Make the data set that ships with fasttune, from facts that can be checked.

    python tools/dataset/make_dataset.py           write both files
    python tools/dataset/make_dataset.py --check   exit with 1 if the committed files differ

Names of units, months, weekdays and countries, and which currency a country has, are Unicode
CLDR data (license: Unicode-3.0), read through Babel; all else is computed.  The bytes depend on
the CLDR release, so on the version of Babel that is named below.

A row is a fact put into words.  Facts are divided before any row is made, for all languages at
once (see dataset_facts.py).
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import babel
from dataset_facts import FACTS, KINDS, facts, shuffled
from dataset_locale import LANGUAGES, Words
from dataset_phrases import VOCABULARY
from dataset_render import RENDER

BABEL_VERSION = "2.18.0"
SHIPPED = Path(__file__).resolve().parents[2] / "src" / "fasttune" / "data"
# In each language, of a task of each kind.
ROWS_PER_TASK = {
    "train": {"steps": 24, "look": 15},
    "heldout": {"steps": 3, "look": 3},
    "harder": {"steps": 1, "look": 1},
}

Row = dict[str, str]


def make_row(language: str, task: str, part: str, fact: Any, variant: int) -> Row:
    """The row for a fact, in the words of one of the task's instructions."""
    said = VOCABULARY[language]
    values = RENDER[task](Words(language), said, fact, variant)
    return {
        "language": language,
        "task": task,
        "kind": KINDS[task],
        "harder": "yes" if part == "harder" else "no",
        "instruction": said.instructions[task][variant].format_map(values),
        "input": values.get("input", ""),
        "reasoning": said.sentences(values["steps"]),
        "output": str(values["answer"]),
    }


def make_rows(*parts: str) -> list[Row]:
    """All rows of some parts, in an order that the rows decide."""
    rows: list[Row] = []
    for part in parts:
        for task in FACTS:
            known = facts(task, part)
            for number, language in enumerate(LANGUAGES):
                variants = len(VOCABULARY[language].instructions[task])
                chosen = shuffled(known, task, language)[: ROWS_PER_TASK[part][KINDS[task]]]
                rows += [
                    make_row(language, task, part, fact, (place + number) % variants)
                    for place, fact in enumerate(chosen)
                ]
    return shuffled(rows, parts)


def make_files() -> dict[str, bytes]:
    return {
        "facts-train.jsonl": to_jsonl(make_rows("train")),
        "facts-heldout.jsonl": to_jsonl(make_rows("heldout", "harder")),
    }


def to_jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def print_counts(files: dict[str, bytes]) -> None:
    for name, data in files.items():
        rows = [json.loads(line) for line in data.decode().split("\n") if line]
        counts = Counter((row["task"], row["language"]) for row in rows)
        print(f"{name}: {len(rows)} rows")
        print(" " * 16, *(f"{language:>4}" for language in LANGUAGES))
        for task in FACTS:
            print(f"{task:<16}", *(f"{counts[task, language]:>4}" for language in LANGUAGES))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the data set that ships with fasttune.")
    parser.add_argument("--check", action="store_true", help="compare only; write nothing")
    check: bool = parser.parse_args(arguments).check
    if babel.__version__ != BABEL_VERSION:
        print(f"warning: made for Babel {BABEL_VERSION}, this is {babel.__version__}; CLDR differs")
    files = make_files()
    stale = [
        name
        for name, data in files.items()
        if not (SHIPPED / name).is_file() or (SHIPPED / name).read_bytes() != data
    ]
    if check and stale:
        print(
            f"{', '.join(stale)}: out of date; run python tools/dataset/make_dataset.py",
            file=sys.stderr,
        )
        return 1
    for name in [] if check else stale:
        SHIPPED.mkdir(parents=True, exist_ok=True)
        write_atomically(SHIPPED / name, files[name])
    print_counts(files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
