"""`fasttune chat` at a terminal, with a generator that loads no model."""

import io
from contextlib import contextmanager

import pytest

from fasttune.errors import FasttuneError
from fasttune.plugins.metric import Answer
from fasttune.source import Source
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
    assert told == "\r> ONE\n[eos, 1 tokens]\n> TWO\n[eos, 1 tokens]\n> "


def test_what_keeps_it_from_loading_begins_a_line(base, monkeypatch):
    def load(source):
        raise FasttuneError("the model cannot be loaded")

    monkeypatch.setattr(Source, "load", load)
    monkeypatch.setattr("sys.stdin", Terminal("one\n"))
    ended = cli("chat", base)
    assert (ended.status, ended.out.endswith("> \n")) == (2, True)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    assert cli("chat", base).out == ""


class Remembering:
    """A generator that answers with a number, and keeps what it was asked."""

    def __init__(self, said=lambda number: f"answer {number}"):
        self.asked, self.said, self.tuned = [], said, True

    def stream(self, row, sampling, show):
        said = [(turn["instruction"], turn.get("output")) for turn in row.turns]
        self.asked.append((self.tuned, said))
        text = self.said(len(self.asked))
        show(text)
        return Answer(row, text, {"response": text}, "eos", 2)

    @contextmanager
    def untuned(self):
        self.tuned = False
        yield
        self.tuned = True


def talk(base, monkeypatch, generator, lines, template="chatml"):
    monkeypatch.setattr(Source, "load", lambda source: generator)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    ended = cli("chat", base, "--template", template)
    assert ended.status == 0
    return ended


def test_a_conversation_goes_on_until_it_is_reset(base, monkeypatch):
    told = Remembering()
    ended = talk(
        base, monkeypatch, told, ["one", "two", "/base", "three", "/reset", "/base", "four"]
    )
    assert told.asked == [
        (True, [("one", None)]),
        (True, [("one", "answer 1"), ("two", None)]),
        (False, [("one", "answer 1"), ("two", None)]),
        (True, [("one", "answer 1"), ("two", "answer 2"), ("three", None)]),
        (True, [("four", None)]),
    ]
    assert ended.out.splitlines()[4:8] == [
        "answer 3",
        "[untuned, eos, 2 tokens]",
        "answer 4",
        "[eos, 2 tokens]",
    ]
    assert "ask something first" in ended.out


def test_a_format_of_one_turn_forgets(base, monkeypatch):
    told = Remembering()
    ended = talk(base, monkeypatch, told, ["one", "two", "/reset", "/what"], "alpaca")
    assert [asked for _, asked in told.asked] == [[("one", None)], [("two", None)]]
    assert "every question is a fresh prompt: the format holds one turn" in ended.out
    for command in ("/input TEXT", "/reset", "/base", "/help", "/quit"):
        assert f"\n{command}  " in f"\n{ended.out}"  # each with what it does


def test_an_answer_with_a_tag_is_no_part_of_the_conversation(base, monkeypatch):
    told = Remembering(lambda number: "<|im_start|>user" if number == 1 else "fine")
    ended = talk(base, monkeypatch, told, ["one", "two", "three"])
    assert "the conversation goes on without it" in ended.out
    assert told.asked[1:] == [
        (True, [("two", None)]),
        (True, [("two", "fine"), ("three", None)]),
    ]


def test_answering_skips_bad_rows_when_a_setting_says_so(base, monkeypatch):
    class Numbers:
        def answers(self, rows, *arguments):
            return [Answer(row, "1", {"response": "1"}, "eos", 1) for row in rows]

    monkeypatch.setattr(Source, "load", lambda source: Numbers())
    file = base / "rows.jsonl"
    file.write_text('{"instruction": "one"}\nnot json\n{"instruction": ""}\n')
    words = ("answer", base, file, "--template", "alpaca")
    ended = cli(*words)
    assert ended.status == 2 and "data.skip_bad_rows=true" in ended.err
    ended = cli(*words, "data.skip_bad_rows=true")
    assert ended.status == 0 and "2 rows are skipped" in ended.err
    assert ended.out.count('"instruction": "one"') == ended.out.count("\n") == 1


def test_a_chat_shows_the_sections_of_an_answer(base, monkeypatch):
    class Thinking(Remembering):
        def stream(self, row, sampling, show):
            show("both")
            return Answer(row, "both", {"reasoning": "2 + 2", "response": "[4]"}, "eos", 2)

    ended = talk(base, monkeypatch, Thinking(), ["one"], "reasoning")
    assert ["reasoning", "2", "+", "2"] in [line.split() for line in ended.out.splitlines()]
    assert ["response", "[4]"] in [line.split() for line in ended.out.splitlines()]
