"""Whatever bytes a file holds, a reader gives rows and findings, or an error in three parts."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttune.config import SETTINGS, RunConfig, dump_config, load_config, parse_override
from fasttune.data.load import load_rows
from fasttune.encoding.encode import encode_many
from fasttune.errors import FasttuneError
from fasttune.formats.parts import Segment
from fasttune.formats.template import Template

TEXT = st.text(max_size=20)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROW = st.dictionaries(st.sampled_from(["instruction", "output", "input"]) | TEXT, VALUE, max_size=4)
BYTES = st.one_of(
    st.binary(max_size=200),
    st.lists(ROW | VALUE, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.lists(ROW | VALUE, max_size=4).map(lambda rows: json.dumps(rows).encode()),
    st.lists(TEXT, max_size=6).map(lambda cells: ",".join(cells).encode(errors="replace")),
    st.binary(max_size=60).map(lambda inner: b"instruction,output\na,b\n" + inner),
    st.binary(max_size=60).map(lambda inner: b'{"instruction":"a","output":"b"}\n' + inner),
    st.binary(max_size=60).map(lambda inner: b"PAR1" + inner + b"PAR1"),
)


def require_told(error: FasttuneError) -> None:
    assert error.message and error.where and error.hint


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
@settings(max_examples=80, deadline=None)
@given(content=BYTES)
def test_rows(ending, content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"rows.{ending}"
        file.write_bytes(content)
        try:
            loaded = load_rows(file)
        except FasttuneError as error:
            require_told(error)
        else:
            for row in loaded.rows:
                assert row["instruction"].strip() and row["output"].strip()
                "".join([*row, *row.values()]).encode()


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=100) | TEXT.map(lambda text: text.encode(errors="replace")))
def test_a_config_of_any_bytes(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.yaml"
        file.write_bytes(content)
        try:
            load_config(file)
        except FasttuneError as error:
            require_told(error)
            assert str(file) in error.where


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(SETTINGS), value=VALUE)
def test_a_setting_of_any_value(key, value):
    try:
        config = load_config(None, [(key, value)])
    except FasttuneError as error:
        require_told(error)
        assert error.where == key
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "c.yaml"
            file.write_text(dump_config(config), encoding="utf-8")
            assert load_config(file) == config


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SETTINGS).map(lambda key: f"{key}=") | st.just(""), TEXT)
def test_any_word_as_a_setting(key, word):
    try:
        assert isinstance(load_config(None, [parse_override(key + word)]), RunConfig)
    except FasttuneError as error:
        require_told(error)


class Ended(Template):
    """Has a segment for whatever a row holds, and one more."""

    def segments(self, row):
        yield Segment("instruction", row["instruction"], False)
        yield Segment("response", row["output"], True)
        yield Segment("end", ".", True)


@settings(max_examples=100, deadline=None)
@given(instruction=st.text(min_size=1, max_size=40), output=st.text(max_size=40))
def test_any_text_is_encoded_whole(phi2_tokenizer, instruction, output):
    row = {"instruction": instruction, "output": output}
    [encoded] = encode_many(Ended(name="ended"), [row], phi2_tokenizer)
    assert encoded.input_ids[-1] == phi2_tokenizer.eos_token_id
    assert [span.start for span in encoded.spans[1:]] == [span.end for span in encoded.spans[:-1]]
    assert encoded.spans[0].start == 0 and encoded.spans[-1].end == len(encoded)
    text = phi2_tokenizer.decode(
        encoded.input_ids[:-1], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert text == f"{instruction}{output}."
