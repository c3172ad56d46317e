"""Rows on disk are the rows that were put there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttune.data import rows as module
from fasttune.data.rows import ChosenRows, StoredRows
from fasttune.formats.row import TURN_COLUMNS, Row

ROW = st.dictionaries(st.text(), st.text(st.characters()), max_size=4)


def stored(rows):
    found = StoredRows()
    for row in rows:
        found.append(row)
    return found


TEXT = st.text(st.characters(), max_size=5)
TURN = st.dictionaries(st.sampled_from(TURN_COLUMNS), TEXT)
WHOLE = st.builds(
    Row, st.lists(TURN, min_size=1, max_size=3), TEXT, ROW, st.sampled_from(["", "ja"])
)


@settings(deadline=None)
@given(st.lists(WHOLE, max_size=4))
def test_conversations_and_detected_languages_come_back(rows):
    for row, back in zip(rows, stored(rows), strict=True):
        assert (back.turns, back.system, back.columns) == (row.turns, row.system, row.columns)
        assert back.language == row.language and dict(back) == dict(row)


@settings(deadline=None)
@given(st.lists(ROW, max_size=8), st.sampled_from([0, 10, 2**24]))
def test_rows_come_back_as_they_were(rows, in_memory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "IN_MEMORY", in_memory)
        found = stored(rows)
        assert found == rows and list(found) == rows and len(found) == len(rows)
        assert [list(row) for row in found] == [list(row) for row in rows]  # the columns' order


def test_text_is_exact():
    row = {"a": " \r\n\t\x00", "b": "é e\u0301 \ud800 🥫", "": "\u2028"}
    assert stored([row])[0] == row


def test_they_are_a_sequence(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "IN_MEMORY", 1)
    rows = [{"n": str(n)} for n in range(5)]
    found = stored(rows)
    assert found[-1] == rows[-1] and found[1:3] == rows[1:3] and found[::-2] == rows[::-2]
    with pytest.raises(IndexError):
        found[5]
    assert found != rows[:-1] and found != [*rows[:-1], {"n": "x"}] and found != 3
    found.append({"n": "5"})  # after reading
    assert found[3:] == [{"n": "3"}, {"n": "4"}, {"n": "5"}]
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_chosen_rows():
    found = ChosenRows(stored([{"n": str(n)} for n in range(5)]), [3, 1])
    assert found == [{"n": "3"}, {"n": "1"}]
    assert found[1:] == [{"n": "1"}]
    assert not ChosenRows(stored([]), [])


def test_rows_know_their_number_in_the_source():
    found = StoredRows()
    for number in (2, 5, 9):
        found.append({"n": str(number)}, number=number)
    assert [found.number(at) for at in range(3)] == [2, 5, 9]
    assert ChosenRows(found, [2, 0]).number(0) == 9
    assert stored([{}, {}]).number(1) == 2


def test_a_row_with_other_columns_or_fewer():
    turns = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]
    row = Row(turns, "S").in_language("ja")
    assert dict(row) == {"system": "S", "instruction": "c", "output": "d", "language": "ja"}
    asked = row.without(["output"])
    assert asked.turns == ({"instruction": "a", "output": "b"}, {"instruction": "c"})
    assert (asked.system, asked.columns, asked["language"]) == ("S", {}, "ja")
    changed = row.with_turn({"output": "e", "system": "T", "id": "7"})
    assert changed.turns == (turns[0], {"instruction": "c", "output": "e"})
    assert (changed.system, changed.columns, changed["language"]) == ("T", {"id": "7"}, "ja")
    assert row.with_turn({"language": "fr"})["language"] == "fr"
    assert Row.of(row, [turns[1]]).turns == (turns[1], *turns) and Row.of(row) is row
    assert row == Row(row.turns, "S") and row.turns[1]["output"] == "d"  # as it was
