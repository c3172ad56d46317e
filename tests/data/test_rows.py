"""Rows on disk are the rows that were put there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttune import given as given_
from fasttune import learn
from fasttune.data import rows as module
from fasttune.data.rows import ChosenRows, StoredRows
from fasttune.plugins.template import with_system

ROW = st.dictionaries(st.text(), st.text(st.characters()), max_size=4)


def stored(rows):
    found = StoredRows()
    for row in rows:
        found.append(row)
    return found


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


def test_renderings_lie_beside_their_rows():
    found = StoredRows()
    renderings = [[], [given_("a", "\ud800 é\n"), learn("b", "")], [learn("b", "x")]]
    for number, segments in enumerate(renderings):
        found.append({"n": str(number)}, iter(segments))
    assert [found.segments(at) for at in range(3)] == renderings
    chosen = ChosenRows(found, [2, 1])
    assert [chosen.segments(at) for at in range(2)] == renderings[:0:-1]
    assert chosen == [{"n": "2"}, {"n": "1"}]

    class Marked(str):
        """A template engine's own kind of text."""

    found.append({"n": "3"}, [given_("a", Marked("x"))])
    assert found.segments(3) == [given_("a", "x")]


def test_a_system_text_is_laid_over_a_row():
    row = {"system": "old", "n": "0"}
    assert with_system(row, "new") == {"system": "new", "n": "0"}
    assert with_system({"n": "0"}, "new") == {"n": "0", "system": "new"}
    assert with_system(row, None) == with_system(row, "") == row == {"system": "old", "n": "0"}


def test_rows_know_their_number_in_the_source():
    found = StoredRows()
    for number in (2, 5, 9):
        found.append({"n": str(number)}, number=number)
    assert [found.number(at) for at in range(3)] == [2, 5, 9]
    assert ChosenRows(found, [2, 0]).number(0) == 9
    assert stored([{}, {}]).number(1) == 2
