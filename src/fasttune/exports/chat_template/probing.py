"""Finding out by probing how a template puts its prompt together.

A template is code; other programs take a prompt format as data. Rendering the template with
sentinel values, for every combination of present and absent columns, takes its prompt apart into
literal text, places for columns, and choices between such parts. A template that does more than
place its columns is refused, with what it was seen to do.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Mapping
from typing import Any, NoReturn

from fasttune.errors import FasttuneError
from fasttune.exports.chat_template.probes import TEXTS, Reads, check_rows, distortion, sentinel
from fasttune.exports.chat_template.skeleton import (
    Condition,
    Field,
    Nodes,
    Parts,
    Skeleton,
    State,
    atoms,
    fill,
    join,
    keyed,
    merge,
    tree,
)
from fasttune.plugins.guard import PluginError, described, watched
from fasttune.plugins.identity import PROBE_ROWS
from fasttune.plugins.template import Row, Template, opening

MAX_COMBINATIONS = 512
LENGTHS = range(1, 41)

# Columns whose value may decide what is written without being written itself, and the values worth
# trying. No other column's values can be guessed.
SWITCHES: dict[str, tuple[str, ...]] = {
    "language": tuple(a + b for a in string.ascii_lowercase for b in string.ascii_lowercase)
}


def take_apart(template: Template, system: str | None = None) -> Skeleton:
    """Probe a template. `system` stands in for the system text of rows that have none.

    Raises:
        FasttuneError: the template does more than place its columns, or fails on a probe.
    """
    with watched():  # it is asked a thousand times
        return _Prober(template, system).skeleton()


def default_system(row: Row, system: str | None) -> Row:
    """The row with `system` as its system text if it has none."""
    return {**row, "system": row.get("system") or system} if system else row


class _Prober:
    def __init__(self, template: Template, system: str | None) -> None:
        self.template = template
        self.system = system
        self.targets = set(template.targets.values())

    def refuse(self, reason: str) -> NoReturn:
        raise FasttuneError(
            f"template '{self.template.name}' cannot be written as a chat template: {reason}",
            "a chat template can only place columns, and ask whether they are there",
            "clean the columns in the data instead, or prompt with fasttune itself",
        )

    def sections(self, row: Row) -> list[tuple[str, str]]:
        """(name, text) of the segments before the first learned one.

        Raises:
            KeyError: the template needs a column that the row lacks.
        """
        row = default_system(row, self.system)
        try:
            found, again = (
                [(s.name, s.text) for s in opening(self.template, row)] for _ in range(2)
            )
            if found != again:
                self.refuse("it renders the same row differently each time")
            if "".join(text for _, text in found) != self.template.prompt(row):
                self.refuse("it overrides prompt() with something other than its segments")
        except PluginError as error:
            self.fails(error)
        return found

    def fails(self, error: PluginError) -> NoReturn:
        """Refuse a template that fails on a probe, but for a column that it lacks."""
        cause = error.__cause__
        if isinstance(cause, KeyError):
            raise cause
        if not error.raised:
            raise error
        self.refuse(f"it fails on a probe with {described(cause or error)}")

    def prompt(self, row: Row) -> str:
        try:
            return "".join(text for _, text in self.sections(row))
        except KeyError as error:
            self.refuse(f"it needs the column {error} only sometimes")

    def skeleton(self) -> Skeleton:
        columns, required = self.columns()
        base = {column: sentinel(column) for column in required}
        self.check_targets(base)
        placed: dict[str, Condition] = {}
        states: dict[str, list[State]] = {}
        switches: list[str] = []
        for column in sorted(columns, key=lambda c: (c != "instruction", c)):
            if (rest := self.place(column, columns, base)) is not None:
                absent = "" if column in required else None
                # A switch that is set is not found in the text of another column.
                fixed = {c: SWITCHES[c][0] for c in columns & set(SWITCHES) - {column}}
                placed[column] = self.condition(column, {**rest, **fixed}, absent)
                if absent is None or placed[column] != Condition():
                    states[column] = [(placed[column], sentinel(column)), (None, absent)]
                    required.discard(column)
                else:
                    states[column] = [(None, sentinel(column))]
            elif column in SWITCHES:
                switches.append(column)
            elif column == "instruction":
                self.refuse(distortion(column, sentinel(column), self.prompt(base)))
            else:
                self.refuse(f"it reads the column '{column}' for something other than placing it")
        decides = False
        kinds: dict[str, tuple[str, ...]] = {}
        # After the placed columns, so that a choice by value is the inner one.
        for column in switches:
            states[column], by_text = self.values(column, base)
            kinds[column] = tuple(value for _, value in states[column] if value is not None)
            decides = decides or by_text
        skeleton = Skeleton(
            self.nodes(states), placed, frozenset(required), kinds, text_decides=decides
        )
        self.verify(skeleton, states, base)
        return skeleton

    def columns(self) -> tuple[set[str], set[str]]:
        """The columns that prompts read, and those among them that a row must have."""
        known, required = {"instruction"}, {"instruction"}
        while True:
            before = len(known), len(required)
            for present in (known, required):
                row = Reads(default_system({c: sentinel(c) for c in present}, self.system))
                try:
                    try:
                        opening(self.template, row)
                    except PluginError as error:
                        self.fails(error)
                except KeyError as error:
                    if error.args and error.args[0] in row.read - set(row):
                        required.add(error.args[0])
                known |= (row.read | required) - self.targets
            if missing := required & self.targets:
                self.refuse(
                    f"its prompt needs the column '{missing.pop()}', which is to be written"
                )
            if (len(known), len(required)) == before:
                return known, required

    def check_targets(self, base: Row) -> None:
        """Refuse a prompt that changes with what is to be written."""
        for probe in PROBE_ROWS:
            row = {**base, **{k: v for k, v in probe.items() if k not in self.targets}}
            for column in self.targets:
                if any(
                    self.prompt({**row, column: t}) != self.prompt(row) for t in ("", *TEXTS[:6])
                ):
                    self.refuse(
                        f"its prompt depends on the column '{column}', which is to be written"
                    )

    def place(self, column: str, columns: set[str], base: Row) -> dict[str, str] | None:
        """The other columns of a row whose prompt holds this column's text, or None."""
        bare = {c: text for c, text in base.items() if c != column}
        full = {c: sentinel(c) for c in columns if c != column and c not in SWITCHES}
        for rest in (bare, full):
            if sentinel(column) in self.prompt({**rest, column: sentinel(column)}):
                return rest
            text = self.prompt({**rest, column: sentinel(column)})
            if column not in SWITCHES and (why := distortion(column, sentinel(column), text, "")):
                self.refuse(why)
        return None

    def condition(self, column: str, rest: Row, absent: str | None) -> Condition:
        """When a column's text is placed: from which length on, or whenever there is one.

        `absent` is what stands for no text: "" where the template fails without the column.
        """
        without = self.prompt(rest if absent is None else {**rest, column: absent})
        around = self.parts({**rest, column: sentinel(column)})
        seen: list[tuple[str | None, bool]] = [(None, False)] if absent is None else []
        for text in (*TEXTS, "", *("x" * n for n in LENGTHS), *(" x" + " " * n for n in LENGTHS)):
            prompt = self.prompt({**rest, column: text})
            row = {**rest, column: text}
            is_placed, is_left_out = prompt == fill(around, row), prompt == without
            if not is_placed and not is_left_out:
                self.refuse(distortion(column, text, prompt))
            if is_placed != is_left_out:
                seen.append((text, is_placed))
        for condition in (
            Condition(),
            *(Condition(n) for n in LENGTHS),
            *(Condition(n, stripped=True) for n in LENGTHS),
        ):
            if all(condition.holds(text) == is_placed for text, is_placed in seen):
                return condition
        self.refuse(f"whether '{column}' is placed depends on more than its length")

    def values(self, column: str, base: Row) -> tuple[list[State], bool]:
        """The states of a switch, and whether the instruction's text decides if it is not set."""
        groups: dict[Parts, list[str]] = {}
        for value in SWITCHES[column]:
            groups.setdefault(self.parts({**base, column: value}), []).append(value)
        absent = {self.unsaid({**base, "instruction": text}, text) for text in TEXTS}
        absent.add(self.parts(base))
        by_text = len(absent) > 1
        if absent - set(groups) and by_text:
            self.refuse("the text around 'instruction' changes with what it says")
        common = max(groups, key=lambda parts: len(groups[parts]))
        states: list[State] = [
            (Condition(values=tuple(values)), values[0])
            for parts, values in groups.items()
            if parts is not common
        ]
        if by_text or absent == {common}:
            # What a row gives beats what its text says, or else nothing can be compiled at all.
            return [*states, (None, groups[common][0])], by_text
        return [*states, (Condition(minimum=1), groups[common][0]), (None, None)], by_text

    def unsaid(self, row: Row, instruction: str) -> Parts:
        """The parts of a prompt with a natural instruction, which may stand elsewhere by chance."""
        around = self.prompt(row)
        if instruction.strip() and around.count(instruction) == 1:
            before, _, after = around.partition(instruction)
            return join([before, Field("instruction"), after])
        return self.parts({**row, "instruction": sentinel("instruction")})

    def parts(self, row: Row) -> Parts:
        return _split(self.prompt(row), row)

    def nodes(self, states: Mapping[str, list[State]]) -> Nodes:
        """Render every combination of states, and write each section as a tree of choices."""
        columns = list(states)
        combinations = list(itertools.product(*(range(len(states[c])) for c in columns)))
        if len(combinations) > MAX_COMBINATIONS:
            self.refuse(f"its columns combine in {len(combinations)} ways")
        rendered: dict[tuple[int, ...], dict[tuple[str, int], Parts]] = {}
        for combination in combinations:
            chosen = {c: states[c][i][1] for c, i in zip(columns, combination, strict=True)}
            row = {column: value for column, value in chosen.items() if value is not None}
            rendered[combination] = {
                key: _split(text, row) for key, text in keyed(self.sections(row))
            }
        order = merge([list(sections) for sections in rendered.values()])
        if order is None:  # sections change places: take the prompt as one
            rendered = {
                combination: {("", 0): join([p for part in sections.values() for p in part])}
                for combination, sections in rendered.items()
            }
            order = [("", 0)]
        found: list[Any] = []
        for key in order:
            table = {c: atoms(sections.get(key, ())) for c, sections in rendered.items()}
            found += tree(table, [(c, states[c]) for c in columns])
        return tuple(join(found))

    def verify(self, skeleton: Skeleton, states: Mapping[str, list[State]], base: Row) -> None:
        """Compare the skeleton with the template on other rows than those it was made from."""
        for row in check_rows(skeleton, states, base, self.targets):
            prompt = self.prompt(row)
            if skeleton.matching(row, prompt) is not None:
                continue
            for column in skeleton.placed:
                plain = {**row, column: sentinel(column)}
                if column in row and skeleton.matching(plain, self.prompt(plain)) is not None:
                    self.refuse(distortion(column, row[column], prompt))
            self.refuse(f"how its columns {', '.join(row)} act together cannot be found by probing")


def _split(text: str, row: Row) -> Parts:
    """Literal text and the fields whose sentinel stands between it."""
    parts: list[str | Field] = [text]
    for column, value in row.items():
        if value != sentinel(column):
            continue
        for index in range(len(parts) - 1, -1, -1):
            part = parts[index]
            if isinstance(part, str) and value in part:
                pieces = part.split(value)
                between: list[str | Field] = [pieces[0]]
                for piece in pieces[1:]:
                    between += [Field(column), piece]
                parts[index : index + 1] = between
    return join(parts)
