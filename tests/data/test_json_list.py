"""Reading a .json row by row means what reading it whole means."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttune.data import json_list
from fasttune.data.json_list import rows_of
from fasttune.errors import FasttuneError

TEXT = st.text(st.characters(exclude_categories=()), max_size=8)  # halves of surrogate pairs, too
NUMBERS = st.integers() | st.floats() | st.integers(10**30, 10**31)
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def read(path):
    return list(rows_of(path, dict))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(VALUE, max_size=6),
    st.booleans(),
    st.sampled_from([None, 1, 4]),
    st.sampled_from([1, 2, 3, 7, 64]),
    st.dictionaries(TEXT.filter(lambda key: key != "data"), VALUE),
)
def test_the_values_are_those_of_json_whatever_the_chunks(
    tmp_path_factory, values, ascii_only, indent, chunk, others
):
    path = tmp_path_factory.mktemp("json") / "a.json"
    for whole in (values, {**others, "data": values}):
        text = json.dumps(whole, ensure_ascii=ascii_only, indent=indent)
        try:
            path.write_text(text, encoding="utf-8")
        except UnicodeEncodeError:
            return
        kept, json_list.CHUNK = json_list.CHUNK, chunk
        try:
            assert repr(read(path)) == repr(values)  # NaN is not equal to itself
        finally:
            json_list.CHUNK = kept


@settings(max_examples=300, deadline=None)
@given(st.text('[]{}",:12.e-tru nl\\a\n', max_size=12), st.sampled_from([1, 3, 2**20]))
def test_what_is_no_json_is_refused_and_nothing_else(tmp_path_factory, text, chunk):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(text)
    try:
        value = json.loads(text)
        expected = value if isinstance(value, list) else value.get("data")
        expected = expected if isinstance(expected, list) else None
    except (ValueError, AttributeError):
        expected = None
    kept, json_list.CHUNK = json_list.CHUNK, chunk
    try:
        found = read(path)
    except FasttuneError:
        found = None
    finally:
        json_list.CHUNK = kept
    assert found == expected or (not text.strip() and found == [])


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[{"a": 1},\n{"a" 2}]', "Expecting ':' delimiter: line 2 column 6"),
        ('[{"a": 1}\n, tru]', "Expecting value: line 2 column 3"),
        ('{"a": 1}\n{"a": 2}', "Extra data: line 2 column 1"),
        ('{"data": [1], "data": [2]}', "the key 'data' is there twice"),
        ("[1 2]", "Expecting ',' or ']': line 1 column 4"),
        ("[1", "Expecting ',' or ']': line 1 column 3"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2**20])
def test_the_place_is_the_files(tmp_path, monkeypatch, text, where, chunk):
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FasttuneError, match="is not JSON") as caught:
        read(tmp_path / "a.json")
    assert where in caught.value.where


@pytest.mark.parametrize("chunk", [1, 5, 2**20])
def test_a_byte_that_is_no_utf8_is_placed(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    (tmp_path / "a.json").write_bytes('["é",\n"日本", "x'.encode() + b'\xff"]')
    with pytest.raises(FasttuneError, match="not UTF-8") as caught:
        read(tmp_path / "a.json")
    assert "line 2 is not UTF-8: byte 0xff at position 13" in caught.value.where


def test_memory_does_not_grow_with_the_file(tmp_path):
    row = json.dumps({"instruction": "x" * 2000, "output": "y" * 2000})
    path = tmp_path / "a.json"
    with path.open("w") as file:
        file.write("[" + ",".join([row] * 8000) + "]")  # 32 MB in one line
    tracemalloc.start()
    try:
        assert sum(1 for _ in rows_of(path, dict)) == 8000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * json_list.CHUNK
