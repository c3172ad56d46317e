"""`fasttune evaluate --tasks`: what lm-eval is handed, and what is read of its figures."""

from __future__ import annotations

import importlib.machinery
import json
import math
import sys
import types

import pytest

from fasttune.comparison.tasks import run_tasks
from tests.conftest import cli

RESULTS = {
    "mine": {
        "alias": "mine",
        "sample_len": 8,
        "exact_match,strict": 0.5,
        "exact_match_stderr,strict": 0.25,
        "bleu,none": 3.0,
        "bleu_stderr,none": "N/A",
    }
}


@pytest.fixture
def harness(monkeypatch):
    """lm-eval by its documented interface: simple_evaluate, HFLM and TaskManager."""
    seen: dict[str, object] = {}

    class TaskManager:
        def __init__(self, include_path, include_defaults):
            seen.update(include_path=include_path, include_defaults=include_defaults)
            self.all_tasks = ["mine", "gsm8k"]

    class HFLM:
        def __init__(self, **given):
            seen.update(given)
            seen["chat_template"] = given["tokenizer"].chat_template

    def simple_evaluate(model, **given):
        assert isinstance(model, HFLM)
        seen.update(given)
        return {"results": RESULTS}

    for name, parts in {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": HFLM},
        "lm_eval.tasks": {"TaskManager": TaskManager},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(parts)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


@pytest.mark.slow
def test_the_model_is_asked_in_its_own_format(harness, tiny_phi, tmp_path):
    import fasttune

    generator = fasttune.load(str(tiny_phi), "alpaca")
    file = tmp_path / "mine.yaml"
    file.write_text("task: mine\ndoc_to_target: !function utils.target\n")
    figures = run_tasks(generator, [str(file), "gsm8k"], rows=8, batch_size=2)
    assert harness["pretrained"] is generator.model and harness["batch_size"] == 2
    assert harness["tasks"] == ["mine", "gsm8k"] and harness["limit"] == 8
    assert harness["include_path"] == [str(tmp_path)] and harness["include_defaults"] is True
    assert harness["apply_chat_template"] is True and harness["fewshot_as_multiturn"] is False
    assert "### Instruction:" in harness["chat_template"]
    assert generator.tokenizer.chat_template is None  # as it was
    strict, bleu = figures
    assert (strict.task, strict.metric, strict.rows) == ("mine", "exact_match, strict", 8)
    assert math.isclose(strict.interval.low, 0.5 - 1.96 * 0.25, abs_tol=1e-4)
    assert bleu.metric == "bleu" and math.isnan(bleu.interval.low)

    ended = cli("evaluate", tiny_phi, "-t", "alpaca", "--tasks", file, "--json")
    assert harness["limit"] is None and harness["include_defaults"] is False
    assert json.loads(ended.out)["tasks"][1] == {
        "task": "mine", "metric": "bleu", "value": 3.0, "low": None, "high": None, "rows": 8,
    }  # fmt: skip
    ended = cli("evaluate", tiny_phi, "-t", "alpaca", "--tasks", "gms8k")
    assert ended.status == 2 and "no task 'gms8k'" in ended.err


def test_without_lm_eval_nothing_is_loaded(monkeypatch, tiny_phi):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    ended = cli("evaluate", tiny_phi, "--tasks", "gsm8k")
    assert ended.status == 2 and "pip install lm-eval" in ended.err
