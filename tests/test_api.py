"""The verbs from Python, on a tiny Phi: what a notebook does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import fasttune
from tests.conftest import cli, listening, rows, write_rows

pytestmark = pytest.mark.slow

VERBS = (
    "compare", "export", "load", "load_config", "open_run", "plan", "prepare", "preview", "train",
)  # fmt: skip


def test_verbs_come_when_they_are_asked_for_and_bring_no_torch():
    code = f"""
import sys, fasttune
assert dir(fasttune) == sorted(fasttune.__all__)
verbs = [getattr(fasttune, name) for name in {VERBS!r}]
config = fasttune.load_config(None, ["train.epochs=2", ("lora.r", 8)])
assert (config.train.epochs, config.lora.r) == (2.0, 8)
assert all(verb.__doc__ for verb in verbs)
print(repr(fasttune.plan(config, gpu="t4")))
heavy = [name for name in ("torch", "transformers", "unsloth") if name in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("plan: ") and "of 16.0 GB" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        fasttune.trian  # noqa: B018


@pytest.fixture(scope="module")
def job(tiny_phi, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    data = write_rows(folder / "rows.jsonl", rows(24))
    return fasttune.prepare(
        fasttune.load_config(
            None,
            [
                f"model.name={tiny_phi}", "model.precision=fp32", f"data.train={data}",
                "data.eval_fraction=0.25", "train.max_steps=2", "train.batch_size=2",
                "samples.count=1", "samples.max_new_tokens=3", f"output={folder / 'runs'}",
                "system=Answer in one word.",
            ],
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(job):
    return fasttune.train(job)


def test_a_job_shows_what_it_is(job):
    assert repr(job).startswith("<Job: reasoning on tiny-phi-")
    assert f"{len(job.train)} rows to train on, {len(job.eval)} held out" in repr(job)
    shown = fasttune.preview(job, row=2)
    assert "generation begins here" in str(shown) and "\x1b" not in str(shown)
    assert repr(shown).startswith("<Preview of row 2 in reasoning: prompt ")
    assert "Answer in one word." in shown.text  # as the run will render it
    assert shown._repr_html_().startswith("<iframe srcdoc=")
    with pytest.raises(fasttune.FasttuneError, match="there is no row 0"):
        fasttune.preview(job, row=0)
    with listening() as said:
        plan = fasttune.plan(job)
    assert plan.rows == len(job.train) and plan.fits
    assert said == ["auto: learning rate 0.002 (5.1 M parameters), warm-up 0"]
    assert "in all" in plan._repr_html_()


def test_training_gives_a_run_that_answers(job, run, capsys):
    assert run.manifest["status"] == "done" and run.metrics()[-1]["eval_loss"] > 0
    assert repr(run) == f"<Run {run.folder}: done, 2 steps>"
    assert "data:image/png;base64," in run._repr_html_()
    assert fasttune.open_run("last", job.config.output) == run
    model = fasttune.load(run)
    answer = model.answer("Add 3 and 4.", input="Two numbers.", max_new_tokens=4)
    assert isinstance(answer.response, str) and answer.tokens == 4
    assert model.prompt({"instruction": "Add 3 and 4.", "input": ""}).startswith(
        "<|system|>Answer in one word."
    )
    ended = cli(
        "generate", run.folder, "Add 3 and 4.", "--input", "Two numbers.", "--max-new-tokens", 4,
        "--json",
    )  # fmt: skip
    assert json.loads(ended.out)["text"] == answer.text  # the command line is built on it
    with pytest.raises(fasttune.FasttuneError, match="was trained with the template 'reasoning'"):
        fasttune.load(run, template="alpaca")
    with pytest.raises(fasttune.FasttuneError, match="is done"):
        fasttune.train(run)


def test_an_export_and_a_comparison_from_python(job, run, tmp_path):
    done = fasttune.export(run, "adapter", rows=1, output=tmp_path / "adapter")
    assert done.verification is not None and done.verification.verified
    with pytest.raises(fasttune.FasttuneError, match="takes no --quant"):
        fasttune.export(run, "adapter", quant="q8_0")
    result = fasttune.compare(
        ["alpaca", "reasoning"], job.config, seeds=(1,), output=tmp_path / "comparison",
        measuring=fasttune.Measuring(rows=2, max_new_tokens=3, include_base=False),
    )  # fmt: skip
    assert result.labels == ["alpaca", "reasoning"] and result.report.is_file()
    assert result.verdict in repr(result) and "few to tell" in result.verdict
    assert result._repr_html_().startswith("<iframe srcdoc=")
    with pytest.raises(fasttune.FasttuneError, match="templates and runs are mixed"):
        fasttune.compare(["alpaca", run])


def test_tab_finds_the_verbs_and_paths_may_be_text(tmp_path):
    assert {"load_config", "prepare", "train", "load", "export", "compare"} <= {*dir(fasttune)}
    plugin = tmp_path / "mine.py"
    plugin.write_text("import fasttune\n")
    assert not fasttune.load_plugin(str(plugin)).templates
