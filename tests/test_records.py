"""Whatever the bytes of a file are, the readers give a value or an error of ours."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fasttune.errors import FasttuneError
from fasttune.exports.export import RECORD, standing
from fasttune.files import LARGEST, SEAL, check_seal
from fasttune.models.whole import require_whole
from fasttune.records import Manifest, read_json, read_manifest, read_metrics
from fasttune.runs import Run
from fasttune.runs.folder import HELD_OUT

OLD = (Path(__file__).parent / "old_run" / "manifest.json").read_bytes()
STATUSES = ("running", "interrupted", "failed", "nothing learned", "done")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)
damaged = st.builds(
    lambda at, what, drop: OLD[:at] + what + OLD[at + drop :],
    st.integers(0, len(OLD)), st.binary(max_size=4), st.integers(0, 40),
)  # fmt: skip
files = st.binary(max_size=200) | values.map(lambda v: json.dumps(v).encode()) | damaged


def ours(read, *arguments: object) -> object:
    try:
        return read(*arguments)
    except FasttuneError as error:
        assert error.message and error.where and error.hint
        return None


@settings(max_examples=300, deadline=None)
@given(files)
@example(b"\xef\xbb\xbf{}")
@example(b'{"format": 1e999}')
@example(b'{"format": true}')
@example(b'{"format": 1, "versions": 3}')
@example(b'{"versions": {"fasttune": []}}')
def test_any_bytes_are_a_manifest_or_an_error(data):
    with TemporaryDirectory() as folder:
        file = Path(folder, "manifest.json")
        file.write_bytes(data)
        found = ours(read_manifest, file)
        assert found is None or found["status"] in STATUSES
        ours(read_json, file, Manifest)


@settings(max_examples=300, deadline=None)
@given(st.lists(files | st.just(b'{"step": 1, "loss": 0.5}'), max_size=4), st.booleans())
def test_any_lines_are_a_log_or_an_error(lines, ended):
    with TemporaryDirectory() as folder:
        file = Path(folder, "metrics.jsonl")
        file.write_bytes(b"\n".join(lines) + b"\n" * ended)
        found = ours(read_metrics, file)
        assert found is None or all(isinstance(line["step"], int) for line in found[0])


turns = st.lists(values | st.dictionaries(st.text(max_size=9), st.text(max_size=9)), max_size=3)
held_out = st.tuples(
    st.integers() | values,
    st.text(max_size=9) | values,
    values
    | st.fixed_dictionaries({"system": values, "turns": turns}, optional={"columns": values}),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(files | held_out.map(lambda line: json.dumps(line).encode()), max_size=3))
def test_any_held_out_rows_are_refused_unless_they_are_the_runs(lines):
    with TemporaryDirectory() as folder:
        Path(folder, "manifest.json").write_bytes(OLD)
        Path(folder, HELD_OUT).write_bytes(b"\n".join(lines))
        assert ours(Run(Path(folder)).held_out) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_seal_is_kept_or_refused(data):
    with TemporaryDirectory() as folder:
        Path(folder, SEAL).write_bytes(data)
        assert ours(check_seal, Path(folder), "it", "restore it") is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), values, st.integers(0, 99))
def test_any_weights_are_read_or_refused(tail, header, off):
    with TemporaryDirectory() as folder:
        text = json.dumps({"a": header} if off % 2 else header).encode()
        length = (len(text) + (off if off > 90 else 0)).to_bytes(8, "little")
        Path(folder, "model.safetensors").write_bytes(length + text + tail)
        ours(require_whole, Path(folder))


def test_a_log_that_is_not_there_is_empty(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == ([], False)
    with pytest.raises(FasttuneError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path / "manifest.json")


def sparse(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(20 * 2**30)


ODD = {
    "a pipe": (os.mkfifo, "not a regular file"),
    "a device": (lambda file: file.symlink_to("/dev/zero"), "not a regular file"),
    "20 GB of nothing": (sparse, f"the limit is {LARGEST / 1e6:,.0f} MB"),
    "nested too deeply": (lambda file: file.write_bytes(b"[" * 100_000), "is no JSON"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_regular_file_is_an_error_at_once(kind, tmp_path):
    make, why = ODD[kind]
    run = Run(tmp_path)
    for name, read in (
        ("manifest.json", lambda: run.manifest),
        ("metrics.jsonl", run.metrics),
        ("plan.json", lambda: read_json(tmp_path / "plan.json", dict)),
        (SEAL, lambda: check_seal(tmp_path, "the adapter", "restore it")),
    ):
        make(tmp_path / name)
        if (name, kind) in ((SEAL, "nested too deeply"), ("metrics.jsonl", "nested too deeply")):
            continue  # not JSON; half a last line is what a kill leaves
        with pytest.raises(FasttuneError) as caught:
            read()
        error = caught.value
        assert why in error.message + error.where and name in str(error) and error.hint
    make(tmp_path / RECORD)
    assert standing(run, "merged", target=tmp_path) is None
