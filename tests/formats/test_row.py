"""The typed row: its turns, its system text and its other columns, and what a format reads."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasttune import Row

TALK = Row.of(
    {"instruction": "And 3?", "input": "x", "output": "5", "system": "Add.", "task": "sums"},
    [{"instruction": "2?", "output": "2"}, {"instruction": "1?", "output": "3"}],
)
TEXT = st.text(max_size=5)
TURN = st.dictionaries(st.sampled_from(["instruction", "input", "reasoning", "output"]), TEXT)
ROWS = st.builds(
    Row,
    st.lists(TURN, min_size=1, max_size=3),
    TEXT,
    st.dictionaries(st.sampled_from(["task", "language"]), TEXT),
    TEXT,
)


def test_flat_columns_are_sorted_into_turns_system_and_others():
    assert TALK.turns == (
        {"instruction": "2?", "output": "2"},
        {"instruction": "1?", "output": "3"},
        {"instruction": "And 3?", "input": "x", "output": "5"},
    )
    assert (TALK.system, TALK.columns, TALK.language) == ("Add.", {"task": "sums"}, "")
    assert Row.of(TALK) is TALK


def test_as_a_mapping_it_is_its_last_turn():
    assert dict(TALK) == {
        "system": "Add.", "instruction": "And 3?", "input": "x", "output": "5", "task": "sums",
    }  # fmt: skip
    assert (TALK["output"], TALK.get("reasoning"), len(TALK)) == ("5", None, 5)
    assert Row.of({"instruction": "a"}) == {"instruction": "a"}
    assert Row.of({"instruction": "a"}, [{"instruction": "b"}]) != {"instruction": "a"}


def test_a_turn_is_read_with_the_columns_of_the_row():
    assert TALK.turn(0) == {"system": "Add.", "instruction": "2?", "output": "2", "task": "sums"}


def test_a_detected_language_is_read_and_stands_for_a_blank_one():
    detected = Row([{"instruction": "Hi"}], language="en")
    assert detected["language"] == "en" and detected.as_json() == {
        "system": "", "turns": [{"instruction": "Hi"}],
    }  # fmt: skip
    assert Row([{"instruction": "Hi"}], "", {"language": ""}, "en")["language"] == "en"
    assert detected.with_turn({"instruction": "Yo"}).language == "en"
    changed = detected.with_turn({"language": "de"})
    assert (changed["language"], changed.language) == ("de", "")


def test_replacing_and_leaving_out_touch_the_last_turn_alone():
    changed = TALK.with_turn({"output": "6", "system": "Sum."})
    assert changed.turns[:2] == TALK.turns[:2]
    assert (changed["output"], changed.system, TALK["output"]) == ("6", "Sum.", "5")
    asked = TALK.without(["output", "reasoning"])
    assert [turn.get("output") for turn in asked.turns] == ["2", "3", None]
    assert asked.columns == {"task": "sums"}


def test_every_text_is_seen():
    assert [*TALK.texts()] == [
        ("system", "Add."), ("instruction", "2?"), ("output", "2"), ("instruction", "1?"),
        ("output", "3"), ("instruction", "And 3?"), ("input", "x"), ("output", "5"),
        ("task", "sums"),
    ]  # fmt: skip


@given(ROWS)
def test_json_gives_it_back(row):
    saved = json.loads(json.dumps(row.as_json()))
    again = Row.from_json(saved, row.language)
    assert again == row and hash(again) == hash(row) and dict(again) == dict(row)
    assert [*again.texts()] == [*row.texts()]


@pytest.mark.parametrize("key", ["system", "turns"])
def test_what_was_saved_is_whole(key):
    with pytest.raises(KeyError):
        Row.from_json({k: v for k, v in TALK.as_json().items() if k != key})
