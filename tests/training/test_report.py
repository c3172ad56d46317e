"""The sheet of answers, without a model."""

from __future__ import annotations

import json

import pytest

from fasttune.config import load_config
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.job import prepare
from fasttune.plugins.discovery import load_plugins
from fasttune.plugins.metric import Answer, exact_section
from fasttune.training.report import write_samples


def answer(task: str, response: str) -> Answer:
    row = {"instruction": "1 + 1", "output": "2", "task": task}
    return Answer(row, response, {"response": response}, "eos", 2)


BEFORE = [answer("sum", "x"), answer("sum", "y"), answer("count", "2"), answer("", "2")]
AFTER = [answer("sum", "2"), answer("sum", "3"), answer("count", "2"), answer("", "3")]


def test_exact_answers_are_split_by_columns(tmp_path):
    metrics = [metric for metric, _ in load_plugins().metrics.values()]
    scores = write_samples(tmp_path, BEFORE, AFTER, metrics, ["task"])
    assert (scores["before"]["exact"], scores["after"]["exact"]) == (0.5, 0.5)
    assert json.loads((tmp_path / "samples.json").read_text())["by"] == {
        "task": {
            "count": {"rows": 1, "before": 1.0, "after": 1.0},
            "sum": {"rows": 2, "before": 0.0, "after": 0.5},
        }
    }
    sheet = (tmp_path / "samples.md").read_text().splitlines()
    start = sheet.index("| exact, by task | rows | before | after |")
    assert sheet[start + 2 : start + 4] == [
        "| count | 1 | 1.00 | 1.00 |",
        "| sum | 2 | 0.00 | 0.50 |",
    ]
    assert (tmp_path / "answers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("by", "left_out"), [(["task"], "exact"), ([], "")])
def test_nothing_is_split_without_a_column_or_without_the_metric(by, left_out, tmp_path):
    metrics = [metric for metric, _ in load_plugins().metrics.values() if metric.name != left_out]
    write_samples(tmp_path, BEFORE, AFTER, metrics, by)
    assert {path.name for path in tmp_path.iterdir()} == {"samples.json", "samples.md"}


def test_a_column_that_no_row_has_is_refused_before_training():
    config = load_config(None, [("samples.by", ["task", "lang"])])
    with pytest.raises(FasttuneError, match="no held-out row has a column 'lang'") as caught:
        prepare(config, load_plugins())
    assert "language" in caught.value.hint


def test_the_sheet_shows_turns_and_references_as_text(tmp_path):
    turns = [
        {"instruction": "# Hi", "output": "Hello."},
        {"instruction": "```\nWho?", "input": "<img src=x>", "output": "Me."},
    ]
    row = Row(turns, "Be kind.", {"sources": "KB-101", "kind": "a|b <i> $\\frac$ \x1b[2J _x_ y_z"})
    targets = {"response": "output", "sources": "sources"}
    old = Answer(
        row, "\n" * 30 + "x", {"response": "x", "sources": ""}, "length", 128, targets=targets
    )
    new = Answer(
        row, "Me.\nKB-104", {"response": "Me.", "sources": "KB-104"}, "eos", 9, targets=targets
    )
    metrics = [*(metric for metric, _ in load_plugins().metrics.values()), exact_section("sources")]
    scores = write_samples(tmp_path, [old], [new], metrics, ["kind"])
    assert scores["after"]["exact"] == 1 and scores["after"]["exact_sources"] == 0
    assert scores["better"]["exact"] == "higher" and scores["better"]["length"] == ""
    table, _, sheet = (tmp_path / "samples.md").read_text().partition("\n## 1\n")
    assert (
        "| exact\\_sources |" not in table and "| exact_sources | higher | 0.00 | 0.00 |" in table
    )
    assert r"| a\|b \<i\> \$\\frac\$ ⟨U+001B⟩\[2J \_x\_ y_z | 1 | 0.00 | 1.00 |" in table
    assert (
        sheet
        == """
**System**

```text
Be kind.
```

**Question, turn 1**

```text
# Hi
```

**Answer, turn 1**

```text
Hello.
```

**Question, turn 2**

````text
```
Who?
````

**Input, turn 2**

```text
<img src=x>
```

**Reference, response**

```text
Me.
```

**Reference, sources**

```text
KB-101
```

**Before, cut off while it repeated itself, at 128 tokens**

```text
[30 blank lines]
x
```

**After, ended after 9 tokens**

```text
Me.
KB-104
```
"""
    )


def test_answers_on_training_rows_are_called_that(tmp_path):
    metrics = [metric for metric, _ in load_plugins().metrics.values()]
    write_samples(tmp_path, BEFORE, AFTER, metrics, ["task"], kind="training")
    assert json.loads((tmp_path / "samples.json").read_text())["rows"] == "training"
    sheet = (tmp_path / "samples.md").read_text()
    assert sheet.startswith("# Answers on training rows, before") and "held-out" not in sheet
