"""`fasttune chat` at a terminal, with a generator that loads no model."""

import io

import pytest

from fasttune.api import Source
from fasttune.errors import FasttuneError
from fasttune.plugins.metric import Answer
from tests.conftest import cli


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def base(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "phi"}', encoding="utf-8")
    return tmp_path


def test_the_first_question_is_asked_before_the_model_loads(base, capsys, monkeypatch):
    seen = []

    class Told:
        def stream(self, row, sampling, show):
            show(row["instruction"].upper())
            return Answer(row, "", {}, "eos", 1)

    def load(source):
        import sys

        seen.append(sys.stdout.getvalue())
        return Told()

    monkeypatch.setattr(Source, "load", load)
    monkeypatch.setattr("sys.stdin", Terminal("one\ntwo\n"))
    ended = cli("chat", base)
    assert seen[0].endswith("/quit ends\n> ")
    told = ended.out.removeprefix(seen[0])
    assert told == "ONE\n[eos, 1 tokens]\n> TWO\n[eos, 1 tokens]\n> "


def test_what_keeps_it_from_loading_begins_a_line(base, monkeypatch):
    def load(source):
        raise FasttuneError("the model cannot be loaded")

    monkeypatch.setattr(Source, "load", load)
    monkeypatch.setattr("sys.stdin", Terminal("one\n"))
    ended = cli("chat", base)
    assert (ended.status, ended.out.endswith("> \n")) == (2, True)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    assert cli("chat", base).out == ""
