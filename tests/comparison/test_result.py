"""Figures, differences and the verdict on answers that were made up to differ."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console

from fasttune import Answer, Metric
from fasttune.cli.compare import show_figures
from fasttune.comparison.result import Arm, measure_arms, split

STOPS = Metric("stops", "", lambda answer: answer.stop == "eos", "higher")
LOOPS = Metric("loops", "", lambda answer: answer.stop == "length", "lower")
TOKENS = Metric("length", "", lambda answer: answer.tokens)
NEVER = Metric("never", "", lambda answer: None, "higher")
EVEN = Metric("even", "", lambda answer: answer.tokens % 2, "higher")
METRICS = [STOPS, LOOPS, TOKENS, NEVER, EVEN]


def answers(stops: int, tokens: int) -> list[Answer]:
    return [
        Answer({}, "", {}, "eos" if row < stops else "length", tokens + row % 2)
        for row in range(40)
    ]


def compared():
    arms = [
        Arm("good", "good", 1, answers(38, 10)),
        Arm("good", "good", 2, answers(36, 10)),
        Arm("bad", "bad", 1, answers(11, 20)),
        Arm("bad", "bad", 2, answers(11, 20)),
        Arm("bad, untuned", "bad", None, answers(0, 30)),
    ]
    return measure_arms({}, arms, METRICS, [])


def test_figures_of_a_label_and_of_its_seeds():
    found = compared().figures["good"]["stops"]
    assert found.interval.value == 37 / 40
    assert found.seeds == {"1": 38 / 40, "2": 36 / 40}
    assert found.interval.low < 37 / 40 < found.interval.high


def test_how_many_rows_a_metric_counts():
    odd = Metric("odd", "", lambda answer: 1.0 if answer.tokens % 2 else None)
    found = measure_arms({}, [Arm("one", "one", 1, answers(20, 10))], [STOPS, odd], [])
    assert found.counted("stops") == "" and found.counted("odd") == "20 of 40 rows"
    none = Metric("none", "", lambda answer: 1.0 if answer.stop == "eos" else None)
    arms = [Arm("one", "one", 1, answers(20, 10)), Arm("two", "two", 1, answers(5, 10))]
    assert measure_arms({}, arms, [none], []).counted("none") == "5 to 20 of 40 rows"


def test_a_metric_that_means_nothing_here_is_left_out():
    assert [metric.name for metric in compared().metrics] == ["stops", "loops", "length", "even"]


def test_tuned_labels_are_paired_and_each_with_its_own_base():
    assert compared().pairs() == [("good", "bad"), ("bad", "bad, untuned")]


def test_the_better_side_follows_the_direction_of_the_metric():
    found = {d.metric: d for d in compared().between("good", "bad")}
    assert found["stops"].better == "good" and found["stops"].interval.value > 0
    assert found["loops"].better == "good" and found["loops"].interval.value < 0
    assert found["length"].better is None  # describes, does not judge
    assert found["even"].better is None  # the same on both sides


def test_the_verdict_names_rows_and_seeds_what_is_better_and_what_is_not_significant():
    first, second = compared().sentences()
    assert first.startswith(
        "On 40 rows with 2 seeds: good is better than bad on stops (0.925 vs. 0.275, "
        "95% CI of the difference "
    )
    assert "loops (0.075 vs. 0.725, CI " in first
    assert first.endswith("Not significant: even.") and "length" not in first
    assert second.startswith("On 40 rows with 2 seeds: bad is better than bad, untuned on stops")


def test_a_difference_that_is_the_same_on_every_row_has_no_interval():
    arms = [Arm(label, label, 1, answers(stops, 10)) for label, stops in (("a", 40), ("b", 0))]
    result = measure_arms({}, arms, [STOPS, LOOPS], [])
    assert result.verdict == (
        "On 40 rows with one seed: a is better than b on "
        "stops (1 vs. 0, the same difference on every row), "
        "loops (0 vs. 1, the same difference on every row)."
    )
    shown = StringIO()
    show_figures(result, Console(file=shown, width=80))
    assert "…" not in shown.getvalue()


def test_the_verdict_when_nothing_is_certain():
    arms = [Arm(label, label, 1, answers(20, 10)) for label in ("left", "right")]
    [only] = measure_arms({}, arms, [STOPS], []).sentences()
    assert only == (
        "On 40 rows with one seed: no significant difference between left and right. "
        "Not significant: stops."
    )


def test_the_verdict_names_the_seeds_of_each_side_if_they_differ():
    arms = [
        Arm(label, label, seed, answers(20, 10)) for label, seed in (("a", 1), ("a", 2), ("b", 1))
    ]
    [only] = measure_arms({}, arms, [STOPS], []).sentences()
    assert only.startswith("On 40 rows with 2 seeds of a and one seed of b: ")


def test_a_notebook_shows_the_saved_report(tmp_path):
    shown = replace(compared(), folder=tmp_path)
    assert shown._repr_html_() is None  # nothing is saved: Jupyter shows the repr
    (tmp_path / "report.html").write_text("<p>the report</p>")
    assert "&lt;p&gt;the report&lt;/p&gt;" in shown._repr_html_()


def test_too_few_rows_are_said_to_be_too_few():
    first = Metric("first", "", lambda a: a.stop == "eos" if a.tokens < 12 else None, "higher")
    arms = [
        Arm(name, name, 1, [Answer({}, "", {}, stop, tokens) for tokens in range(5, 45)])
        for name, stop in (("left", "eos"), ("right", "length"))
    ]
    result = measure_arms({}, arms, [first], [])
    [found] = result.differences
    assert found.rows == 7 and found.interval.excludes_zero and found.better is None
    [only] = result.sentences()
    assert only.endswith("Counted on fewer than 8 rows, too few to tell: first.")


def test_a_split_compares_the_rows_of_each_value_alone():
    def mixed(stops: str) -> list[Answer]:
        kinds = ["even", "odd"] * 20
        return [Answer({"kind": k}, "", {}, "eos" if k in stops else "length", 1) for k in kinds]

    unknown = Answer({}, "", {}, "eos", 1)
    arms = [
        Arm("left", "left", 1, [*mixed("even"), unknown]),
        Arm("right", "right", 1, [*mixed("odd"), unknown]),
        Arm("left, untuned", "left", None, [*mixed(""), unknown]),
    ]
    groups = split(measure_arms({}, arms, [STOPS], []), "kind")
    assert {value: group.rows for value, group in groups.items()} == {"even": 20, "odd": 20}
    better = {value: group.between("left", "right")[0].better for value, group in groups.items()}
    assert better == {"even": "left", "odd": "right"}
    assert len(groups["even"].sentences()) == 2
    assert groups["even"].sentences(tuned_only=True) == groups["even"].sentences()[:1]
