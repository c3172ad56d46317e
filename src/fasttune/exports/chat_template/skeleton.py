"""A prompt as data: literal text, places for columns, and choices between such parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fasttune.plugins.template import Row


@dataclass(frozen=True)
class Condition:
    """A test of one column's text; a missing column never passes.

    Attributes:
        minimum: characters the text must have.
        stripped: whether white space at its edges does not count.
        values: if not empty, the text must be one of these.
    """

    minimum: int = 0
    stripped: bool = False
    values: tuple[str, ...] = ()

    def holds(self, text: str | None) -> bool:
        if text is None or (self.values and text not in self.values):
            return False
        return len(text.strip() if self.stripped else text) >= self.minimum


@dataclass(frozen=True)
class Field:
    """The place of a column's text."""

    column: str


@dataclass(frozen=True)
class Choice:
    """The nodes of the first case whose condition the column's text passes, else `otherwise`."""

    column: str
    cases: tuple[tuple[Condition, tuple[Node, ...]], ...]
    otherwise: tuple[Node, ...]


Node = str | Field | Choice
Nodes = tuple[Node, ...]
Parts = tuple[str | Field, ...]
State = tuple[Condition | None, str | None]  # None as condition: in every other case


@dataclass(frozen=True)
class Skeleton:
    """A prompt taken apart.

    Attributes:
        nodes: literal text, fields and choices, in order.
        placed: column -> when its text is placed; `instruction` is always placed.
        required: columns without which the template fails.
        switches: column -> one value for each way it has of changing the prompt.
        text_decides: whether the template picks a switch's value by the instruction's text where a
            row does not give it.
    """

    nodes: Nodes
    placed: Mapping[str, Condition]
    required: frozenset[str]
    switches: Mapping[str, tuple[str, ...]]
    text_decides: bool

    def fill(self, row: Row) -> str:
        """The prompt of a row."""
        return fill(self.nodes, row)

    def matching(self, row: Row, prompt: str) -> Row | None:
        """The row, with its switches set such that filling gives `prompt`; None if none does."""
        if self.fill(row) == prompt:
            return row
        # A row may write it otherwise ("ja-JP"), or leave it to be found in its text.
        for column, values in self.switches.items():
            for value in values:
                if self.fill({**row, column: value}) == prompt:
                    return {**row, column: value}
        return None


def fill(nodes: Sequence[Node], row: Row) -> str:
    """Text with every field filled in and every choice taken."""
    return "".join(
        node
        if isinstance(node, str)
        else row.get(node.column, "")
        if isinstance(node, Field)
        else fill(_chosen(node, row.get(node.column)), row)
        for node in nodes
    )


def _chosen(choice: Choice, text: str | None) -> Nodes:
    return next((nodes for test, nodes in choice.cases if test.holds(text)), choice.otherwise)


def join(parts: Sequence[Any]) -> Any:
    """The parts with neighbouring texts joined and empty ones left out."""
    joined: list[Any] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return tuple(joined)


def atoms(parts: Parts) -> tuple[str | Field, ...]:
    """Single characters and fields, so that common beginnings and ends can be compared."""
    return tuple(a for part in parts for a in (part if isinstance(part, str) else [part]))


def tree(
    table: Mapping[tuple[int, ...], tuple[Any, ...]], columns: Sequence[tuple[str, list[State]]]
) -> list[Any]:
    """Nodes that give each combination of states its atoms."""
    variants = list(dict.fromkeys(table.values()))
    if len(variants) == 1:
        return list(variants[0])
    start = _common(variants)
    rest = [variant[start:] for variant in variants]
    end = _common([variant[::-1] for variant in rest])
    if start or end:
        middle = {c: atoms[start : len(atoms) - end] for c, atoms in table.items()}
        first = variants[0]
        return [*first[:start], *tree(middle, columns), *first[len(first) - end :]]
    index = next(i for i in range(len(columns)) if _depends(table, i))
    column, states = columns[index]
    branches = [
        join(tree({c: atoms for c, atoms in table.items() if c[index] == state}, columns))
        for state in range(len(states))
    ]
    tests = [test for test, _ in states[:-1]]
    cases = tuple((test, nodes) for test, nodes in zip(tests, branches, strict=False) if test)
    return [Choice(column, cases, branches[-1])]


def _depends(table: Mapping[tuple[int, ...], Any], index: int) -> bool:
    """Whether combinations that differ in one column only differ in their text."""
    seen: dict[tuple[int, ...], Any] = {}
    return any(
        seen.setdefault(c[:index] + c[index + 1 :], atoms) != atoms for c, atoms in table.items()
    )


def _common(variants: Sequence[tuple[Any, ...]]) -> int:
    """How many leading atoms all variants share."""
    together = zip(*variants, strict=False)
    equal = itertools.takewhile(lambda atoms: all(a == atoms[0] for a in atoms), together)
    return sum(1 for _ in equal)


def keyed(sections: Sequence[tuple[str, str]]) -> Iterator[tuple[tuple[str, int], str]]:
    """Sections under their name and how often it came before: a name may be used twice."""
    counts: dict[str, int] = {}
    for name, text in sections:
        counts[name] = counts.get(name, -1) + 1
        yield (name, counts[name]), text


def merge(orders: Sequence[list[Any]]) -> list[Any] | None:
    """One order that contains all others, or None if they contradict each other."""
    merged: list[Any] = []
    for order in sorted(orders, key=len, reverse=True):
        at = 0
        for key in order:
            if key not in merged:
                merged.insert(at, key)
            at = merged.index(key) + 1
    in_order = all(sorted(order, key=merged.index) == order for order in orders)
    return merged if in_order else None
