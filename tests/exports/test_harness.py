"""lm-eval on a run, through fasttune, and lm-eval's own command line on the merged export."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import fasttune
from fasttune.comparison.tasks import run_tasks
from tests.conftest import write_rows

pytestmark = pytest.mark.slow

TASK = """\
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{instruction}}}}"
{target}
{how}
"""
KINDS = {
    "generate_until": (
        'doc_to_target: "{{output}}"',
        "generation_kwargs: {until: [], max_gen_toks: 8}\nmetric_list: [{metric: exact_match}]",
    ),
    "multiple_choice": (
        "doc_to_target: 0",
        'doc_to_choice: ["4", "5", "6"]\nmetric_list: [{metric: acc}]',
    ),
    "loglikelihood": (
        'doc_to_target: "{{output}}"',
        "metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]",
    ),
}


def test_figures_are_those_of_lm_eval_on_the_merged_export(make_run, plugins, tmp_path):
    pytest.importorskip("lm_eval", reason="pip install lm-eval")
    run = make_run("harness", template="alpaca")
    merged = fasttune.export(run, plugins=plugins, rows=2).folder
    rows = [{"instruction": f"Add {n} and 2.", "output": f"{n + 2}"} for n in range(6)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    generator = fasttune.load(run, plugins=plugins)
    for kind, (target, how) in KINDS.items():
        folder = tmp_path / kind
        folder.mkdir()
        file = folder / "task.yaml"
        file.write_text(TASK.format(data=data, kind=kind, target=target, how=how))
        ours = run_tasks(generator, [str(file)], batch_size=1)
        words = ["--model_args", f"pretrained={merged},dtype=float32", "--tasks", "sums"]
        subprocess.run(
            [
                sys.executable, "-m", "lm_eval", "run", "--model", "hf", *words, "--device", "cpu",
                "--include_path", folder, "--apply_chat_template", "--output_path", folder,
                "--batch_size", "1",
            ],
            check=True, capture_output=True, env=os.environ | {"HF_DATASETS_OFFLINE": "1"},
        )  # fmt: skip
        [saved] = folder.rglob("results_*.json")
        theirs = json.loads(saved.read_text())["results"]["sums"]
        assert ours
        for figure in ours:
            assert figure.interval.value == pytest.approx(theirs[f"{figure.metric},none"], rel=1e-4)
