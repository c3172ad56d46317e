"""Make the data set that ships with fasttune, from facts that can be checked.

    python tools/dataset/make_dataset.py           write both files
    python tools/dataset/make_dataset.py --check   exit with 1 if the committed files differ

Names, languages, currencies, plural forms and number formats are Unicode CLDR data
(license: Unicode-3.0), read through Babel; dates and sums are computed.  The bytes
depend on the CLDR release, so on the version of Babel that is named below.

A row is a fact put into words.  Facts are divided before any row is made, for all
languages at once (see dataset_facts.py): a country, year, number of days, duration or
quantity in the held-out part never plays the same role in the train part.  Moreover a
held-out row is dropped in favour of the next candidate if its output, by chance, equals
the output of a train row (two purchases may have the same total).
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import babel
from dataset_facts import FACTS, shuffled
from dataset_locale import LANGUAGES, Words
from dataset_phrases import PHRASES, VOCABULARY
from dataset_render import RENDER

BABEL_VERSION = "2.18.0"
SHIPPED = Path(__file__).resolve().parents[2] / "src" / "fasttune" / "data"
ROWS_PER_TASK = {"train": 7, "heldout": 1}  # in each language

Row = dict[str, str]


def make_row(language: str, task: str, fact: Any, variant: int) -> Row | None:
    """The row for a fact, or None if the language cannot put this fact simply."""
    values = RENDER[task](Words(language), VOCABULARY[language], fact, variant)
    if values is None:
        return None
    phrasing = PHRASES[language][task]
    return {
        "language": language,
        "task": task,
        "instruction": phrasing.instructions[variant].format_map(values),
        "input": phrasing.input.format_map(values),
        "reasoning": phrasing.reasoning.format_map(values),
        "output": phrasing.output.format_map(values),
    }


def make_rows(split: str, taken: frozenset[str] = frozenset()) -> list[Row]:
    """All rows of a split, with different outputs, none of which is taken already."""
    rows: list[Row] = []
    outputs = set(taken)
    for task, facts in FACTS.items():
        known = list(facts(split))
        for number, language in enumerate(LANGUAGES):
            made: list[Row] = []
            for fact in shuffled(known, task, language):
                row = make_row(language, task, fact, (len(made) + number) % 2)
                if row and row["output"] not in outputs:
                    made.append(row)
                    outputs.add(row["output"])
                if len(made) == ROWS_PER_TASK[split]:
                    break
            rows += made
    return shuffled(rows, split)


def make_files() -> dict[str, bytes]:
    train = make_rows("train")
    heldout = make_rows("heldout", frozenset(row["output"] for row in train))
    return {"facts-train.jsonl": to_jsonl(train), "facts-heldout.jsonl": to_jsonl(heldout)}


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
