"""Segments, the base class, tags in fields, and the rendering hash."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fasttune import Segment, Template, given, learn
from fasttune.plugins.identity import PROBE_ROWS, rendering_hash
from fasttune.plugins.template import tags_in


class Plain(Template):
    name = "plain"
    tags = ("Q:", "A:")
    system = "Be kind."

    def segments(self, row):
        yield given("system", f"{row.get('system') or self.system}\n")
        yield given("instruction", f"Q: {row['instruction']}\nA:")
        yield learn("response", row.get("output", ""))


ROW = {"instruction": "Add 2 and 3.", "output": "5"}


def test_segment_constructors():
    assert given("system", "x") == Segment("system", "x", train=False)
    assert learn("response", "y") == Segment("response", "y", train=True)


def test_render_is_all_segments_and_prompt_those_before_the_first_learned_one():
    assert Plain().render(ROW) == "Be kind.\nQ: Add 2 and 3.\nA:5"
    assert Plain().prompt(ROW) == "Be kind.\nQ: Add 2 and 3.\nA:"
    assert Plain().prompt({"instruction": "Add 2 and 3."}) == Plain().prompt(ROW)


def test_prompt_stops_at_an_empty_learned_segment():
    class Two(Plain):
        def segments(self, row):
            yield given("instruction", "Q")
            yield learn("reasoning", "")
            yield given("response", "A")

    assert Two().prompt(ROW) == "Q"


def test_parse_gives_the_text_to_the_first_target():
    class Renamed(Plain):
        targets = {"answer": "output"}

    assert Plain().parse(" 5\n") == {"response": " 5\n"}
    assert Renamed().parse("5") == {"answer": "5"}


def test_segments_has_to_be_written():
    with pytest.raises(NotImplementedError, match=r"Template\.segments"):
        Template().segments(ROW)


def test_tags_in_names_column_and_tag_of_every_field():
    row = {"instruction": "Q: or A:?", "output": "A: yes", "input": "none", "score": 3}
    assert tags_in(Plain(), row) == [
        ("instruction", "Q:"),
        ("instruction", "A:"),
        ("output", "A:"),
    ]


def test_probe_rows_tell_apart_no_context_one_character_and_more():
    assert {row["input"] for row in PROBE_ROWS} == {"", "x", "Some context, in two words."}
    assert {row["language"] for row in PROBE_ROWS} == {"en", "ja", "zh", "ko", "es", "fr", "de"}
    assert len(PROBE_ROWS) == 24


def test_rendering_hash_is_the_same_on_every_machine():
    """Saved adapters hold it: a change here means that none of them can be used without force."""
    saved = "d4823fb8bc5a288bdad9ccb95f8ddcaf60bbfc1164c74d56ba7e122451dde868"
    assert rendering_hash(Plain()) == saved
    program = f"""
import sys; sys.path.insert(0, {__file__.rpartition("/")[0]!r})
from test_template import Plain, rendering_hash; print(rendering_hash(Plain()))"""
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert other.stdout.strip() == saved, other.stderr


class Worded(Plain):
    def segments(self, row):
        for segment in super().segments(row):
            yield Segment(segment.name, segment.text.replace("Q:", "Q :"), segment.train)


class Named(Plain):
    def segments(self, row):
        for segment in super().segments(row):
            yield Segment("other", segment.text, segment.train)


class Masked(Plain):
    def segments(self, row):
        yield from super().segments(row)
        yield given("end", "")


class Leaning(Plain):
    """Differs in the prompt alone: with the targets there, it renders like Plain."""

    def segments(self, row):
        if "output" not in row:
            yield given("hint", "?")
        yield from super().segments(row)


class Stubborn(Plain):
    """Differs only where the row brings a system text."""

    def segments(self, row):
        return super().segments({**row, "system": ""})


@pytest.mark.parametrize("other", [Worded, Named, Masked, Leaning, Stubborn])
def test_rendering_hash_differs_with_every_thing_that_matters(other):
    assert rendering_hash(other()) != rendering_hash(Plain())


def test_rendering_hash_looks_at_the_rendering_alone():
    class Rewritten(Template):
        name = "rewritten"
        description = "the same text from other code"

        def segments(self, row):
            system = row.get("system") or "Be kind."
            return [
                given("system", system + "\n"),
                given("instruction", "Q: " + row["instruction"] + "\nA:"),
                learn("response", row.get("output", "")),
            ]

    assert rendering_hash(Rewritten()) == rendering_hash(Plain())
