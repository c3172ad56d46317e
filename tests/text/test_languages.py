"""Telling languages apart."""

from __future__ import annotations

import json

import pytest

from fasttune.data.load import shipped
from fasttune.text.languages import LANGUAGES, detect_language


def test_the_shipped_questions():
    lines = shipped("heldout").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    right = sum(detect_language(row["instruction"]) == row["language"] for row in rows)
    assert right / len(rows) >= 0.97
    assert {row["language"] for row in rows} <= set(LANGUAGES)


@pytest.mark.parametrize("text", ["", "72", "3 + 4 = 7", "x"])
def test_too_little_to_tell(text):
    assert detect_language(text) is None
