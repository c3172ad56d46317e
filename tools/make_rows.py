"""Write synthetic rows, always the same ones, to a JSON Lines file: word problems with reasoning.

python tools/make_rows.py --rows 1000000 rows.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

NAMES = ("Ada", "Bo", "Chiyo", "Dmitri", "Elif", "Femi", "Grace", "Hana", "Ivan", "Jun")
THINGS = ("apples", "tickets", "stamps", "shells", "books", "coins", "marbles", "postcards")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def row(number: int) -> dict[str, str]:
    """The row of that number: about as long as one of GSM8K."""
    chance = random.Random(number)
    name, thing = chance.choice(NAMES), chance.choice(THINGS)
    have = 100 + number
    days = chance.sample(WEEKDAYS, chance.randint(2, 5))
    question = [f"{name} has {have} {thing}."]
    steps = []
    for day in days:
        more = chance.randint(2, 99)
        question.append(f"On {day} {name} is given {more} {thing}.")
        steps.append(f"After {day} there are {have} + {more} = {have + more} {thing}.")
        have += more
    question.append(f"How many {thing} does {name} have in the end?")
    return {
        "instruction": " ".join(question),
        "input": "",
        "reasoning": "\n".join(steps),
        "output": str(have),
    }


def write_rows(path: Path, count: int) -> None:
    """Write rows 0 to `count`, exclusive, one by one."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number in range(count):
            file.write(json.dumps(row(number), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    chosen = parser.parse_args()
    write_rows(chosen.file, chosen.rows)
