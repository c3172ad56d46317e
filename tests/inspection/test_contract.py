"""The contract: good templates pass, every kind of broken one is caught by the check for it."""

from __future__ import annotations

import json
import random

import pytest

from fasttune import FasttuneError, Template, given, learn
from fasttune.inspection.contract import check_template, failed
from fasttune.plugins.discovery import load_plugins
from fasttune.plugins.identity import PROBE_ROWS


class Good(Template):
    name = "good"
    tags = ("### Question:", "### Answer:")

    def segments(self, row):
        yield given("instruction", f"### Question:\n{row['instruction']}\n\n")
        yield given("response", "### Answer:\n")
        yield learn("response", row.get("output", ""))


def statuses(results):
    return {result.check: result.status for result in results}


def result_of(template, check, *arguments):
    return next(r for r in check_template(template, *arguments) if r.check == check)


CHECKS = {
    **dict.fromkeys(("renders", "repeatable", "learns", "prompt", "parse", "unlearned"), "ok"),
    **dict.fromkeys(("ids", "decode", "one go", "indentation", "tags"), "ok"),
}


def test_a_good_template_passes_every_check(phi2_tokenizer):
    results = check_template(Good(), phi2_tokenizer)
    assert statuses(results) == {**CHECKS, "tokens": "info"}
    assert results[-1].message == "tokens of each tag: ### Question: 3, ### Answer: 3"
    assert not failed(results)


def test_without_a_tokenizer_the_text_is_checked():
    without = {"ids", "decode", "one go"}
    assert statuses(check_template(Good())) == {c: s for c, s in CHECKS.items() if c not in without}


@pytest.mark.parametrize("name", ["alpaca", "multilingual", "reasoning"])
def test_built_in_templates_keep_the_contract(name, phi2_tokenizer):
    found = statuses(check_template(load_plugins().template(name), phi2_tokenizer))
    # `<|response|>` and a quote are one token of GPT-2's vocabulary.
    one_go = "info" if name == "multilingual" else "ok"
    assert found == {**CHECKS, "one go": one_go, "tokens": "info"}


class NeedsTarget(Good):
    def segments(self, row):
        yield given("instruction", f"### Question:\n{row['instruction']}\n### Answer:\n")
        yield learn("response", row["output"])


class NeedsColumn(Good):
    def segments(self, row):
        yield given("instruction", row["question"])
        yield learn("response", row.get("output", ""))


class Strings(Good):
    def segments(self, row):
        return ["### Question:", row["instruction"]]


class Numbers(Good):
    def segments(self, row):
        yield given("instruction", len(row["instruction"]))
        yield learn("response", row.get("output", ""))


class Silent(Good):
    def segments(self, row):
        pass


class Random(Good):
    def segments(self, row):
        yield given("seed", str(random.random()))
        yield from super().segments(row)


class Counting(Good):
    count = 0

    def segments(self, row):
        self.count += 1
        yield from super().segments(row)
        yield learn("count", str(self.count))


class LearnsNothing(Good):
    def segments(self, row):
        yield given("all", f"{row['instruction']}{row.get('output', '')}")


class GivesNothing(Good):
    def segments(self, row):
        yield given("empty", "")
        yield learn("response", row.get("output", ""))


class Leaks(Good):
    """The answer is in the prompt."""

    def segments(self, row):
        yield given("length", f"### Question: {row['instruction']}")
        yield given("answer", f"### Answer: ({len(row.get('output', ''))} letters)\n")
        yield learn("response", row.get("output", ""))


class OtherPrompt(Good):
    """A second renderer that has drifted."""

    def prompt(self, row):
        return super().prompt(row).rstrip()


class AnotherPrompt(Good):
    def prompt(self, row):
        return super().prompt(row) + " "


class Strips(Good):
    def parse(self, text):
        return {"response": text.strip()}


class AddsAndKeeps(Good):
    def segments(self, row):
        yield given("response", f"### Question: {row['instruction']}### Answer:")
        yield learn("response", f" {row.get('output', '')}")


class ForgetsSection(Good):
    def parse(self, text):
        return {"answer": text}


class Crashes(Good):
    def parse(self, text):
        return {"response": text.split("never")[1]}


class GivesLate(Good):
    targets = {"reasoning": "reasoning", "response": "output"}

    def segments(self, row):
        yield given("instruction", f"### Question:\n{row['instruction']}\n")
        yield learn("reasoning", row.get("reasoning", ""))
        yield given("response", "\n### Answer:\n")
        yield learn("response", row.get("output", ""))

    def parse(self, text):
        reasoning, _, response = text.partition("\n### Answer:\n")
        return {"reasoning": reasoning, "response": response}


class TripleQuoted(Good):
    def segments(self, row):
        yield given(
            "instruction",
            f"""### Question:
            {row["instruction"]}
            ### Answer:\n""",
        )
        yield learn("response", row.get("output", ""))


class TrailingIndent(Good):
    def segments(self, row):
        yield given("instruction", f"### Question:{row['instruction']}\n### Answer:\n    ")
        yield learn("response", row.get("output", ""))


class Undeclared(Good):
    tags = ("### Question:",)


class UndeclaredPipes(Good):
    tags = ()

    def segments(self, row):
        yield given("instruction", f"<|ask|>{row['instruction']}<|reply|>")
        yield learn("response", row.get("output", ""))


class NeverUsed(Good):
    tags = (*Good.tags, "### Context:")


BROKEN = [
    (NeedsTarget, "renders", "failure", "KeyError: 'output' (without output)"),
    (NeedsColumn, "renders", "failure", "KeyError: 'question'"),
    (Strings, "renders", "failure", "'### Question:' is no segment of text"),
    (Numbers, "renders", "failure", "is no segment of text"),
    (Silent, "renders", "failure", "TypeError"),
    (Random, "repeatable", "failure", "probe row 1: '0."),
    (Counting, "repeatable", "failure", "is not"),
    (LearnsNothing, "learns", "failure", "probe row 1: nothing is learned"),
    (GivesNothing, "learns", "failure", "probe row 1: nothing is given first"),
    (Leaks, "prompt", "failure", "without output "),
    (OtherPrompt, "ids", "failure", "trained after ["),
    (AnotherPrompt, "prompt", "failure", "probe row 1: prompt "),
    (Strips, "parse", "failure", "probe row 19: response 'Vingt-six ans' is not '\\nVingt-six"),
    (AddsAndKeeps, "parse", "failure", "response ' 5' is not '5' (character 0)"),
    (ForgetsSection, "parse", "failure", "parse gives no 'response'"),
    (Crashes, "parse", "failure", "IndexError: list index out of range"),
    (GivesLate, "unlearned", "warning", "'\\n### Answer:\\n' is given after a learned segment"),
    (TripleQuoted, "indentation", "warning", "'\\n            ' before '…"),
    (TrailingIndent, "indentation", "warning", "'\\n    ' before"),
    (Undeclared, "tags", "warning", "### Answer: is not listed"),
    (UndeclaredPipes, "tags", "warning", "<|ask|> is not listed"),
    (NeverUsed, "tags", "warning", "### Context: is in no probe row"),
]


@pytest.mark.parametrize(("broken", "check", "status", "seen"), BROKEN)
def test_a_broken_template_is_caught(broken, check, status, seen, phi2_tokenizer):
    results = check_template(broken(), phi2_tokenizer)
    bad = [r for r in results if r.status in ("failure", "warning")]
    assert [(r.check, r.status) for r in bad] == [(check, status)]
    assert seen in "\n".join(bad[0].rows)
    assert bad[0].hint and bad[0].message.startswith("not so: ")
    assert failed(results) == (status == "failure")


def test_only_the_first_rows_are_shown():
    rows = result_of(NeedsColumn(), "renders").rows
    assert [row.partition(":")[0] for row in rows[:3]] == [f"probe row {n}" for n in (1, 2, 3)]
    assert rows[3:] == [f"and {len(PROBE_ROWS) - 3} more"]


def test_rows_that_break_a_promise_are_not_put_to_the_later_checks():
    class OneLanguage(Good):
        def segments(self, row):
            return super().segments(row) if row["language"] == "en" else iter(())

        def parse(self, text):
            return {"response": f"{text}!"}

    assert len([r for r in check_template(OneLanguage()) if r.status == "failure"]) == 2
    assert result_of(OneLanguage(), "learns").rows[0] == "probe row 7: nothing is learned"
    assert result_of(OneLanguage(), "parse").rows[-1] == "and 3 more"


def test_indentation_in_a_field_is_the_rows_own_affair(tmp_path, phi2_tokenizer):
    data = rows_file(tmp_path, {"instruction": "x\n    y", "output": "\n\tz"})
    assert result_of(Good(), "indentation", phi2_tokenizer, data).status == "ok"


def test_learned_text_may_be_indented():
    class Indents(Good):
        def segments(self, row):
            yield given("instruction", f"### Question:\n{row['instruction']}\n\n### Answer:\n")
            yield learn("response", f"  - {row.get('output', '')}\n  ")

        def parse(self, text):
            return {"response": text.removeprefix("  - ").removesuffix("\n  ")}

    assert set(statuses(check_template(Indents())).values()) == {"ok"}


def test_one_go_shows_what_another_program_would_see(phi2_tokenizer):
    class EndsInSpace(Good):
        def segments(self, row):
            yield given("instruction", f"### Question: {row['instruction']}\n### Answer: ")
            yield learn("response", row.get("output", ""))

    result = result_of(EndsInSpace(), "one go", phi2_tokenizer)
    assert result.status == "info"
    assert result.rows[0].startswith("probe row 1: ' 5' in one go, ' ' apart")


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
    results = check_template(Good(), Lossy(phi2_tokenizer))
    assert statuses(results)["decode"] == "failure"
    assert result_of(Good(), "decode", Lossy(phi2_tokenizer)).rows[0].startswith("probe row 4: ")


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
    results = check_template(Good(), None, data)
    assert not failed(results)
    assert result_of(Good(), "data", None, data).rows == [
        "row 2, instruction: contains the template's tag ### Answer:",
        "row 3, output: is empty",
    ]


def test_clean_data_is_said_to_be_clean(tmp_path):
    result = result_of(
        Good(), "data", None, rows_file(tmp_path, {"instruction": "a", "output": "b"})
    )
    assert result.status == "ok" and "(1 can)" in result.message


def test_a_template_that_breaks_on_a_data_row_fails(tmp_path):
    class Picky(Good):
        def segments(self, row):
            if row["instruction"] == "boom":
                raise ValueError("too loud")
            return super().segments(row)

    rows = ({"instruction": word, "output": "b"} for word in ("a", "boom"))
    result = result_of(Picky(), "data", None, rows_file(tmp_path, *rows))
    assert result.status == "failure" and "ValueError: too loud" in result.rows[0]


def test_data_is_left_unread_if_the_template_does_not_render(tmp_path):
    assert statuses(check_template(NeedsColumn(), None, tmp_path / "no.jsonl")) == {
        "renders": "failure"
    }
    with pytest.raises(FasttuneError):
        check_template(Good(), None, tmp_path / "no.jsonl")
