"""Checking templates: good ones pass, every kind of broken one is caught by the check for it."""

from __future__ import annotations

import json
import random

import pytest

from fasttune import END, FasttuneError, Segment, Template, check_template, given, learn
from fasttune.formats.examples import EXAMPLES
from fasttune.inspection.check import failed
from fasttune.plugins.discovery import load_plugins

GOOD = Template(
    name="good",
    parts=[
        given("instruction", "### Question:\n{instruction}\n\n"),
        given("response", "### Answer:\n"),
        learn("response", "{output}"),
    ],
)


def give(section, text):
    return Segment(section, text, train=False)


def write(section, text):
    return Segment(section, text, train=True)


class Good(Template):
    """The same, computed."""

    name: str = "good"
    tags = ("### Question:", "### Answer:")

    def segments(self, row):
        yield give("instruction", f"### Question:\n{row['instruction']}\n\n")
        yield give("response", "### Answer:\n")
        yield write("response", row.get("output", ""))


def statuses(results):
    return {result.check: result.status for result in results}


def result_of(template, check, *arguments):
    return next(r for r in check_template(template, *arguments) if r.check == check)


CHECKS = dict.fromkeys(
    (
        *("renders", "repeatable", "learns", "prompt", "parse", "unlearned", "border"),
        *("ids", "decode", "ends", "one go", "tags"),
    ),
    "ok",
)


@pytest.mark.parametrize("template", [GOOD, Good()], ids=["declared", "computed"])
def test_a_good_template_passes_every_check(template, phi2_tokenizer):
    results = check_template(template, phi2_tokenizer)
    assert statuses(results) == {**CHECKS, "tokens": "info"}
    assert results[-1].message == "tokens of each tag: ### Question: 3, ### Answer: 3"
    assert not failed(results)


def test_without_a_tokenizer_the_text_is_checked():
    without = {"ids", "decode", "ends", "one go"}
    assert statuses(check_template(GOOD)) == {c: s for c, s in CHECKS.items() if c not in without}


@pytest.mark.parametrize("name", ["alpaca", "chatml", "multilingual", "reasoning"])
def test_built_in_templates_keep_the_contract(name, phi2_tokenizer):
    found = statuses(check_template(load_plugins().template(name), phi2_tokenizer))
    # `<|response|>` and a quote are one token of GPT-2's vocabulary.
    one_go = "info" if name == "multilingual" else "ok"
    # The preamble of alpaca is text that no tag begins.
    tags = "info" if name == "alpaca" else "ok"
    assert found == {**CHECKS, "one go": one_go, "tags": tags, "tokens": "info"}


class NeedsTarget(Good):
    def segments(self, row):
        text = f"### Question:\n{row['instruction']}{row['output'] and ''}\n### Answer:\n"
        yield give("instruction", text)
        yield write("response", row["output"])


class NeedsColumn(Good):
    def segments(self, row):
        yield give("instruction", row["question"])
        yield write("response", row.get("output", ""))


class Strings(Good):
    def segments(self, row):
        return ["### Question:", row["instruction"]]


class Numbers(Good):
    def segments(self, row):
        yield give("instruction", len(row["instruction"]))
        yield write("response", row.get("output", ""))


class Silent(Good):
    def segments(self, row):
        pass


class Random(Good):
    def segments(self, row):
        yield give("seed", str(random.random()))
        yield from super().segments(row)


class Counting(Good):
    counted = []

    def segments(self, row):
        self.counted.append(row)
        yield from super().segments(row)
        yield write("count", str(len(self.counted)))


class LearnsNothing(Good):
    def segments(self, row):
        yield give("all", f"{row['instruction']}{row.get('output', '')}")


class GivesNothing(Good):
    def segments(self, row):
        yield give("empty", "")
        yield write("response", row.get("output", ""))


class Leaks(Good):
    """The answer is in the prompt."""

    def segments(self, row):
        yield give("length", f"### Question: {row['instruction']}")
        yield give("answer", f"### Answer: ({len(row.get('output', ''))} letters)\n")
        yield write("response", row.get("output", ""))


class Strips(Good):
    def parse(self, text):
        return {"response": text.strip()}


class AddsAndKeeps(Good):
    def segments(self, row):
        yield give("response", f"### Question: {row['instruction']}### Answer:")
        yield write("response", f" {row.get('output', '')}")


class ForgetsSection(Good):
    def parse(self, text):
        return {"answer": text}


class Crashes(Good):
    def parse(self, text):
        return {"response": text.split("never")[1]}


class GivesLate(Good):
    targets = {"reasoning": "reasoning", "response": "output"}

    def segments(self, row):
        yield give("instruction", f"### Question:\n{row['instruction']}\n")
        yield write("reasoning", row.get("reasoning", ""))
        yield give("response", "\n### Answer:\n")
        yield write("response", row.get("output", ""))

    def parse(self, text):
        reasoning, _, response = text.partition("\n### Answer:\n")
        return {"reasoning": reasoning, "response": response}


class EndsInSpace(Good):
    def segments(self, row):
        yield give("instruction", f"### Question: {row['instruction']}\n### Answer: ")
        yield write("response", row.get("output", ""))


class Ends(Good):
    def segments(self, row):
        yield from super().segments(row)
        yield write("end", "<|endoftext|>")

    def parse(self, text):
        return {"response": text.removesuffix("<|endoftext|>")}


class Begins(Good):
    def segments(self, row):
        yield give("begin", "<|endoftext|>")
        yield from super().segments(row)


BROKEN = [
    (NeedsTarget, "renders", "failure", "KeyError: 'output'"),
    (NeedsColumn, "renders", "failure", "KeyError: 'question'"),
    (Strings, "renders", "failure", "segments() gives '### Question:': Segment(name, text, train)"),
    (Numbers, "renders", "failure", "text=12, train=False): Segment(name, text, train) is wanted"),
    (Silent, "renders", "failure", "TypeError"),
    (Random, "repeatable", "failure", "example 1: '0."),
    (Counting, "repeatable", "failure", "is not"),
    (LearnsNothing, "learns", "failure", "example 1: nothing is learned"),
    (GivesNothing, "learns", "failure", "example 1: nothing is given first"),
    (Leaks, "prompt", "failure", "without the targets "),
    (Strips, "parse", "failure", "example 19: response 'Vingt-six ans' is not '\\nVingt-six"),
    (AddsAndKeeps, "parse", "failure", "response ' 5' is not '5' (character 0)"),
    (ForgetsSection, "parse", "failure", "parse gives no 'response'"),
    (Crashes, "parse", "failure", "IndexError: list index out of range"),
    (GivesLate, "unlearned", "warning", "'\\n### Answer:\\n' is given after a learned segment"),
    (EndsInSpace, "border", "warning", "example 1: it ends with '# Answer: '"),
    (Begins, "ends", "failure", "BOS (<|endoftext|>)"),
    (Ends, "ends", "failure", "example 1: it learns EOS (<|endoftext|>)"),
]


@pytest.mark.parametrize(("broken", "check", "status", "seen"), BROKEN)
def test_a_broken_template_is_caught(broken, check, status, seen, phi2_tokenizer):
    results = check_template(broken(), phi2_tokenizer)
    bad = [r for r in results if r.status in ("failure", "warning")]
    assert [(r.check, r.status) for r in bad] == [(check, status)]
    assert seen in "\n".join(bad[0].rows)
    assert bad[0].hint and bad[0].message.startswith("not so: ")
    assert failed(results) == (status == "failure")


def test_the_file_and_line_are_told():
    [row, *_] = result_of(NeedsColumn(), "renders").rows
    assert f"{__file__}, line " in row and row.endswith("""give("instruction", row["question"])""")


def test_only_the_first_rows_are_shown():
    rows = result_of(NeedsColumn(), "renders").rows
    assert [row.partition(":")[0] for row in rows[:3]] == [f"example {n}" for n in (1, 2, 3)]
    assert rows[3:] == [f"and {len(EXAMPLES) - 3} more"]


def test_rows_that_fail_a_check_are_not_put_to_the_later_ones():
    class OneLanguage(Good):
        def segments(self, row):
            return super().segments(row) if row["language"] == "en" else iter(())

        def parse(self, text):
            return {"response": f"{text}!"}

    results = check_template(OneLanguage())
    assert [r.check for r in results if r.status == "failure"] == ["learns", "parse"]
    assert result_of(OneLanguage(), "learns").rows[0] == "example 7: nothing is learned"
    assert result_of(OneLanguage(), "parse").rows[-1] == "and 3 more"


def test_every_turn_of_a_conversation_is_checked(phi2_tokenizer):
    parts = [given("q", "<|q|>{instruction}<|a|>"), learn("a", "{output}")]
    talks = Template(name="talks", conversations=True, parts=parts)
    assert not failed(check_template(talks, phi2_tokenizer))

    class Later(Good):
        """In later turns, learns nothing."""

        def segments(self, row):
            yield from super().segments(row)
            for turn in row.turns[1:]:
                yield END
                yield give("instruction", turn["instruction"])

    assert (
        result_of(Later(conversations=True), "learns").rows[0] == "example 25: nothing is learned"
    )


def test_a_section_without_a_tag_is_information():
    parts = [given("q", "Question: {instruction}\n"), given("x", "<|a|> x"), learn("a", "{output}")]
    result = result_of(Template(name="t", parts=parts), "tags")
    assert (result.status, result.rows) == ("info", ["'Question:' has none"])
    named = Template(name="t", parts=parts, more_tags=["Question:"])
    assert result_of(named, "tags").status == "ok"


def test_one_go_shows_what_another_program_would_see(phi2_tokenizer):
    result = result_of(EndsInSpace(), "one go", phi2_tokenizer)
    assert result.status == "info"
    assert result.rows[0].startswith("example 1: ' 5' in one go, ' ' apart")


class Lossy:
    """A tokenizer whose decoding drops spaces before punctuation."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, *arguments, **options):
        return self.tokenizer(*arguments, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def decode(self, ids, **options):
        return self.tokenizer.decode(ids, **options).replace(" she", "she")


def test_a_tokenizer_that_changes_text_is_caught(phi2_tokenizer):
    results = check_template(GOOD, Lossy(phi2_tokenizer))
    assert statuses(results)["decode"] == "failure"
    assert result_of(GOOD, "decode", Lossy(phi2_tokenizer)).rows[0].startswith("example 4: ")


def rows_file(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_data_rows_are_checked_by_their_number(tmp_path):
    class NoNumbers(Good):
        def parse(self, text):
            return {"response": "" if text.isdigit() and len(text) == 2 else text}

    good, bad = {"instruction": "a", "output": "b"}, {"instruction": "a", "output": "42"}
    result = result_of(NoNumbers(), "parse", None, rows_file(tmp_path, good, bad))
    assert result.rows == ["row 2: response '' is not '42' (character 0)"]


def test_data_rows_with_a_tag_or_a_gap_are_a_warning(tmp_path):
    data = rows_file(
        tmp_path,
        {"instruction": "a", "output": "b"},
        {"instruction": "see ### Answer: below", "output": "b"},
        {"instruction": "a", "output": ""},
    )
    results = check_template(GOOD, None, data)
    assert not failed(results)
    assert result_of(GOOD, "data", None, data).rows == [
        "row 2, instruction: contains the template's tag ### Answer:",
        "row 3, output: is empty",
    ]


def test_clean_data_is_said_to_be_clean(tmp_path):
    result = result_of(GOOD, "data", None, rows_file(tmp_path, {"instruction": "a", "output": "b"}))
    assert result.status == "ok" and "(1 can)" in result.message


def test_a_template_that_breaks_on_a_data_row_fails(tmp_path):
    class Picky(Good):
        def segments(self, row):
            if row["instruction"] == "boom":
                raise ValueError("too loud")
            return super().segments(row)

    rows = ({"instruction": word, "output": "b"} for word in ("a", "boom"))
    result = result_of(Picky(), "renders", None, rows_file(tmp_path, *rows))
    assert result.status == "failure" and "row 2: ValueError: too loud" in result.rows[0]


def test_data_that_cannot_be_read(tmp_path):
    with pytest.raises(FasttuneError):
        check_template(GOOD, None, tmp_path / "no.jsonl")
