"""The built-in metrics, on answers whose figures can be counted by hand."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from fasttune_plugins.answers import numbers

from fasttune import Answer, FasttuneError, Likelihood, Metric, Template, given, learn
from fasttune.plugins.discovery import load_plugins
from fasttune.plugins.metric import exact_section, score, vote

METRICS = {name: metric for name, (metric, _) in load_plugins().metrics.items()}


def answer(text="Paris", stop="eos", tokens=3, likelihood=None, sections=None, **row):
    row = {"instruction": "What is the capital of France?", "output": "Paris", **row}
    return Answer(row, text, sections or {"response": text}, stop, tokens, likelihood)


def value(name, *answers):
    return score(answers, [METRICS[name]]).get(name)


def test_stops_and_length():
    answers = answer(), answer(stop="length", tokens=8), answer(stop="loop", tokens=4)
    assert value("stops", *answers) == pytest.approx(1 / 3)
    assert value("length", *answers) == 5


def test_format_wants_every_section():
    kept = answer(sections={"reasoning": "It is known.", "response": "Paris"})
    lost = answer(sections={"reasoning": "It is known.", "response": " \n"})
    assert value("format", kept, lost) == 0.5


def test_exact_passes_over_rows_without_a_reference():
    answers = answer(" Paris\n"), answer("Lyon"), answer("x", output="")
    assert value("exact", *answers) == 0.5
    assert value("exact", answer(output="")) is None


def test_every_learned_section_is_measured():
    support = Template(
        name="support",
        parts=[
            given("instruction", "{instruction}\n"),
            learn("thoughts", "{reasoning}\n"),
            learn("response", "Reply: {answer}\n"),
            learn("samples", "Sources: {sources}"),
        ],
    )
    metrics = load_plugins().metrics_of(support, load_plugins().template("alpaca"))
    wrote = support.parsed("r\nReply: a\nSources: KB-104"), support.targets
    answers = [
        Answer(row, "", wrote[0], "eos", 9, targets=wrote[1])
        for row in (
            {"reasoning": "r", "answer": "a", "sources": "KB-104"},
            {"reasoning": "r", "answer": "b", "sources": "KB-101"},
            {"reasoning": "x", "answer": "a", "sources": " "},  # it has no sources to compare with
        )
    ]
    scores = score(answers, [metric for metric in metrics if metric.name.startswith("exact")])
    # `exact_samples` is a metric of --vote.
    assert scores == {"exact": 2 / 3, "exact_thoughts": 2 / 3, "exact_samples_": 1 / 2}
    assert score([answer()], [exact_section("thoughts")]) == {}


def test_the_vote_is_for_the_response_that_most_samples_give():
    drawn = [answer(text) for text in ("Lyon", "Paris", " Paris\n", "Nice")]
    chosen = vote(drawn)
    assert chosen == replace(drawn[1], samples=("Lyon", "Paris", " Paris\n", "Nice"))
    assert value("exact", chosen) == 1
    assert value("agreement", chosen) == value("exact_samples", chosen) == 0.5
    assert value("agreement", drawn[0]) is value("exact_samples", drawn[0]) is None
    assert vote(drawn[:1] + drawn[3:]).text == "Lyon"  # a tie goes to the first


def test_answers_without_an_end_or_a_response_have_no_vote():
    cut, blank = answer("Lyon", stop="length"), answer(" ")
    assert vote([cut, cut, blank, answer("Paris")]).text == "Paris"
    assert vote([blank, cut]).samples == (" ", "Lyon")
    assert value("agreement", vote([cut, cut, answer("Paris")])) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It costs $1,234.50, or 7 %", ["1234.50", "7"]),
        ("1.234,5 und 0,25", ["1234.5", "0.25"]),
        ("１２３人、-4 度", ["123", "-4"]),
        ("1,234,567 and 3.1416 and 0.125", ["1234567", "3.1416", "0.125"]),
        ("none", []),
        ("12 cm², 10², H₂O", ["12", "10"]),
        (".5, $.50 and -.5", ["0.5", "0.50", "-0.5"]),
        ("10-12 and a-3", ["10", "12", "3"]),
        ("−4", ["-4"]),
        ("1,2,3 on 12.05.2031", ["1", "2", "3", "12", "5", "2031"]),
        ("٣٤", ["34"]),
    ],
)
def test_numbers(text, found):
    assert numbers(text) == [Decimal(number) for number in found]


@pytest.mark.parametrize(
    ("output", "text", "expected"),
    [
        ("72", "She sold 48 + 24 = 72.", 1.0),
        ("72", "72.0 clips", 1.0),
        ("72", "72, not 73", 0.0),
        ("72", "many", 0.0),
        ("There are 13 letters.", "13", 1.0),
        ("There are 48 letters.", "48", None),  # the question says it
        ("On 5 May 2031", "2031", None),  # two numbers: which one is the answer?
        ("Paris", "Paris", None),
    ],
)
def test_numeric(output, text, expected):
    asked = "Natalia sold 48 clips in April. How many?"
    assert value("numeric", answer(text, instruction=asked, output=output)) == expected


def test_a_bare_number_counts_although_the_question_holds_it():
    assert value("numeric", answer("48", instruction="48 and?", output="48")) == 1


def test_bits_per_byte_weigh_answers_by_their_bytes():
    answers = [
        answer(likelihood=Likelihood(10, 4, bytes=5, eos=0.5)),
        answer(likelihood=Likelihood(20, 6, bytes=15, eos=0.25)),
    ]
    assert value("bits_per_byte", *answers) == 30 / 20
    assert value("bits_per_byte_reference", *answers) == 10 / 20
    assert value("p_eos", *answers) == 0.375
    assert value("bits_per_byte", answer()) is None


def test_repetition():
    looping = answer("and so and so and so and so and", stop="length")
    stopped = answer("and so and so and so and so", stop="eos")
    fresh = answer("one two three", stop="length")
    assert value("loops", looping, stopped, fresh) == pytest.approx(1 / 3)
    assert value("loops", answer("short", stop="loop")) == 1
    assert value("repeated_words", stopped, fresh) == 4
    assert value("distinct_1", stopped) == 2 / 8
    assert value("distinct_2", stopped) == 2 / 7
    assert value("distinct_3", answer("two words")) is None


def test_language():
    german = answer("Das ist die Hauptstadt von Frankreich.")
    english = answer("It is the capital of the country.")
    number = answer("72")
    assert value("language", german, english, number) == 0.5
    # Where the response is missing, what was written instead is judged.
    lost = answer("It is the capital.", sections={"reasoning": "It is", "response": ""})
    assert value("language", lost) == 1


@pytest.mark.parametrize(
    "measure", [lambda a: a.nothing, lambda a: "much", lambda a: [1], lambda a: (1, 2, 3)]
)
def test_a_metric_that_fails_is_one_error(measure):
    with pytest.raises(FasttuneError, match="the metric 'broken' fails: ") as caught:
        score([answer()], [Metric("broken", "", measure)])
    assert "Paris" in caught.value.where


def test_every_metric_says_which_way_is_better_and_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")
    for name, metric in METRICS.items():
        assert f"`{name}`" in page, name
        assert metric.better in ("higher", "lower", "")
