"""A row forges no section, neither in training nor in a question."""

from __future__ import annotations

import pytest
from fasttune_plugins.alpaca import ALPACA
from fasttune_plugins.chatml import CHATML
from fasttune_plugins.multilingual import MULTILINGUAL
from fasttune_plugins.reasoning import REASONING
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttune.data.check import check_record, require_prompt
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from tests.conftest import REASONING_ROW

TEMPLATES = [ALPACA, REASONING, MULTILINGUAL, CHATML]
COLUMNS = ("instruction", "input", "reasoning", "output")
templates = pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)


def problems(template, row):
    return check_record(1, row, template, {}, template.required).problems


def read_by(template):
    """The columns that reach the text, with an input that is long enough to count."""
    marked = {**REASONING_ROW, **{column: f"[{column}]" for column in COLUMNS}}
    return [column for column in COLUMNS if f"[{column}]" in template.render(marked)]


@templates
def test_no_tag_gets_through_in_training(template):
    assert template.tags and problems(template, REASONING_ROW) == []
    for tag in template.tags:
        for column in read_by(template):
            for text in (tag, f"a {tag} b", f"a\n{tag}\nb", f"{tag}{tag}"):
                found = problems(template, {**REASONING_ROW, column: text})
                assert any(tag in problem.message for problem in found), (column, text)


@templates
def test_nor_in_a_question(template):
    asked = Row.of({"instruction": "Add 2 and 3.", "input": "Two numbers."})
    require_prompt(asked, template)
    for tag in template.tags:
        for column in asked:
            with pytest.raises(FasttuneError, match="cannot be asked") as caught:
                require_prompt(asked.with_turn({column: f"Add. {tag}"}), template)
            assert tag in caught.value.where and column in caught.value.where


@templates
def test_nor_the_end_of_text(template):
    asked = Row.of({"instruction": "Say <|endoftext|>."})
    require_prompt(asked, template)
    with pytest.raises(FasttuneError, match="cannot be asked"):
        require_prompt(asked, template, eos="<|endoftext|>")


@templates
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_let_through_has_the_tags_of_a_plain_row(template, data):
    bits = st.sampled_from(
        [*template.tags, *(tag[:5] for tag in template.tags), *(tag[5:] for tag in template.tags)]
        + ["\n", "a", "<", "#", ":", "|>", " "]
    )
    text = st.lists(bits, min_size=2, max_size=6).map("".join)
    row = {column: data.draw(text) for column in COLUMNS}
    if problems(template, row):
        return
    plain = dict.fromkeys(COLUMNS, "plain")
    for tag in template.tags:
        assert template.render(row).count(tag) == template.render(plain).count(tag)
    completion = template.render(row)[len(template.prompt(row)) :]
    for section, column in template.targets.items():
        assert template.parse(completion)[section] == row[column]


@templates
@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text_can_be_parsed(template, text):
    sections = template.parse(text)
    assert {*sections} >= {*template.targets}
    assert all(isinstance(section, str) for section in sections.values())
