"""The training line on a tiny Phi through Unsloth's CPU backend."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerControl

from fasttune.config import LoraConfig, ModelConfig
from fasttune.encoding.batches import pack, section_names
from fasttune.encoding.encode import IGNORED, encode
from fasttune.errors import FasttuneError
from fasttune.generation.generator import Generator
from fasttune.machine import threads
from fasttune.models.head import SectionLoss, token_losses
from fasttune.models.load import add_lora
from fasttune.plugins.discovery import load_plugins
from fasttune.runs import Run, find_run
from fasttune.runs.resume import last_checkpoint
from fasttune.training.callbacks import Interrupt
from fasttune.training.checkpoints import SaveByTime
from tests.conftest import SETTLED, choices_for, cli, load_model, rows, wake_adapters, write_rows

pytestmark = pytest.mark.slow

SIX_STEPS = ("train.max_steps=6", "train.eval_steps=3", "train.save_steps=3")
PHI_TARGETS = {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", rows(40))


def settings(tiny_phi: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "run", "--template", "reasoning", "--data", str(data), "--model", str(tiny_phi),
        "--output", str(output), "model.quantization=nf4", "model.precision=fp32",
        "data.eval_fraction=0.2", "train.batch_size=2", "train.warmup_steps=1",
        "train.learning_rate=1e-2", "samples.count=2", "samples.max_new_tokens=8", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_phi, data, tmp_path_factory) -> Run:
    """A run of six steps in NF4."""
    output = tmp_path_factory.mktemp("runs")
    status = cli(*settings(tiny_phi, data, output, *SIX_STEPS)).status
    assert status == 0
    return find_run("last", output)


# Numerics


def test_lora_covers_all_six_projections_of_phi(tiny_phi):
    config = ModelConfig(name=str(tiny_phi), quantization="nf4", precision="fp32")
    choices = choices_for(config)
    model, _ = load_model(config, choices)
    quantized = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    assert len(quantized) == 2 * len(PHI_TARGETS)  # NF4 really is on
    model, coverage = add_lora(model, LoraConfig(r=4), 0, choices)
    assert coverage.adapted == dict.fromkeys(PHI_TARGETS, 2)
    assert coverage.left_out == {}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable} == PHI_TARGETS
    sizes = 4 * (320 + 320)  # A and B of q, k, v and dense; fc1 and fc2 have 1280 on one side
    assert coverage.parameters == 2 * (4 * sizes + 2 * 4 * (320 + 1280))


def test_a_target_that_matches_nothing_is_an_error(tiny_phi):
    config = ModelConfig(name=str(tiny_phi), quantization="none", precision="fp32")
    choices = choices_for(config)
    model, _ = load_model(config, choices)
    with pytest.raises(FasttuneError) as caught:
        add_lora(model, LoraConfig(targets=("q_proj", "o_proj")), 0, choices)
    assert "'o_proj' matches no layer" in str(caught.value) and "q_proj" in caught.value.hint


def test_section_losses_are_those_of_the_reference_logits(tiny_phi):
    tokenizer = AutoTokenizer.from_pretrained(tiny_phi)
    reference = AutoModelForCausalLM.from_pretrained(tiny_phi, dtype=torch.float32).eval()
    template = load_plugins().template("reasoning")
    encoded = [encode(template, row, tokenizer) for row in rows(3)]
    names = section_names(encoded)
    batch = pack(encoded, names)
    losses = SectionLoss(names)
    with torch.no_grad():
        hidden = reference.model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).last_hidden_state
        each = token_losses(reference, hidden, batch["places"], batch["targets"])
    losses.add(each, batch["owners"])
    expected: dict[str, list[float]] = {name: [] for name in names}
    for row in encoded:
        with torch.no_grad():
            logits = reference(input_ids=torch.tensor([row.input_ids])).logits[0]
        for span in row.spans:
            if span.train:
                targets = torch.tensor(row.input_ids[span.start : span.end])
                lines = logits[span.start - 1 : span.end - 1]
                expected[span.name] += cross_entropy(lines, targets, reduction="none").tolist()
    for name, mean in losses.means().items():
        assert mean == pytest.approx(sum(expected[name]) / len(expected[name]), abs=1e-5)
    assert losses.tokens == sum(map(len, expected.values()))


@pytest.mark.parametrize("dropout", [0.0, 1e-9], ids=["grouped", "layer by layer"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("kind", ["tiny_phi", "tiny_llama"])
def test_loss_and_gradients_of_a_step_are_those_of_transformers_and_peft(
    kind, packing, dropout, request, tmp_path
):
    """One step of the trainer against plain transformers and PEFT, in fp32.

    The step's rows are divided over two packs, which share their beginning.
    """
    from peft import get_peft_model

    from fasttune.config import RunConfig, TrainConfig
    from fasttune.training.callbacks import Progress
    from fasttune.training.trainer import Trainer

    folder = request.getfixturevalue(kind)
    model_settings = ModelConfig(name=str(folder), quantization="none", precision="fp32")
    lora = LoraConfig(r=4, alpha=8, dropout=dropout)
    choices = replace(choices_for(model_settings, lora=lora), side_by_side=1)
    base, tokenizer = load_model(model_settings, choices)
    model, _ = add_lora(base, lora, 1, choices)
    wake_adapters(model)
    template = load_plugins().template("reasoning")
    encoded = [encode(template, row, tokenizer) for row in rows(4)]
    longest = max(map(len, encoded))
    config = RunConfig(
        model=replace(model_settings, max_length=longest),
        train=TrainConfig(batch_size=2, packing=packing, **SETTLED),
    )
    generator = Generator(model, tokenizer, template, choices)
    trainer = Trainer(config, generator, encoded, [], Run(tmp_path), [Progress()])
    fast = trainer.fast
    assert fast.by_row and bool(fast.groups or fast.layers) == (dropout == 0)
    assert fast.norms == (5 if kind == "tiny_llama" else 0)  # Phi has LayerNorms
    batches = trainer.collator(encoded)
    assert len(batches) == 2
    assert all(("row_layout" in b and b["row_layout"].shared > 20) == packing for b in batches)
    items = sum(label != IGNORED for row in encoded for label in row.labels)
    loss = trainer.training_step(trainer.model, [0, 1, 2, 3])
    assert trainer.progress.tokens == sum(map(len, encoded))
    stored = sum(batch["input_ids"].numel() for batch in batches)
    saved = sum(map(len, encoded)) - stored if packing else 0
    assert trainer.saved_tokens == saved
    assert (saved > 40) == packing

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference = get_peft_model(plain, model.peft_config["default"]).eval()
    reference.load_state_dict(model.state_dict())
    total = torch.zeros(())
    for row in encoded:
        logits = reference(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        targets = torch.tensor(row.labels)[1:]
        total = total + cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    (total / items).backward()
    assert float(loss) == pytest.approx(float(total.detach()) / items, abs=1e-5)
    expected = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys() and got
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        assert (got[name] - gradient).abs().max() <= 1e-4 * scale, name


# Run


def test_a_run_leaves_everything_in_its_folder(finished):
    manifest = finished.manifest
    assert manifest["status"] == "done" and manifest["steps"] == 6
    assert manifest["quantization"] == "nf4" and manifest["dtype"] == "float32"
    assert set(manifest["lora"]["layers"]) == PHI_TARGETS
    assert manifest["template"] == load_plugins().facts("reasoning")
    assert manifest["data"]["train_rows"] + manifest["data"]["eval_rows"] == 40
    assert manifest["peak_memory_bytes"] > 0 and manifest["seconds"]["train"] > 0
    assert (finished.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((finished.adapter / "template.json").read_text()) == manifest["template"]
    assert AutoTokenizer.from_pretrained(finished.adapter).eos_token == "<|endoftext|>"
    samples = json.loads((finished.folder / "samples.json").read_text())
    assert len(samples["samples"]) == 2 and set(samples["scores"]["after"]) >= {"stops", "exact"}
    assert "**After, cut off at 8 tokens**" in (finished.folder / "samples.md").read_text()
    assert not list(finished.folder.glob(".*"))  # nothing half written is left behind


def test_no_secret_of_the_environment_is_in_a_file_of_the_run(finished):
    files = [file for file in finished.folder.rglob("*") if file.is_file()]
    assert len(files) > 8
    for file in files:
        content = file.read_bytes()
        for name in ("HF_TOKEN", "WANDB_API_KEY"):
            assert os.environ[name].encode() not in content, file


def test_the_manifest_holds_what_was_decided(finished):
    assert finished.manifest["choices"] == {
        "kind": "cpu",
        "quantization": "nf4",
        "dtype": "float32",
        "autocast": False,
        "loss_scaling": False,
        "attention": "rows",
        "fast_path": True,
        "why_plain": "",
        "nf4_copy": True,
        "optimizer": "adamw_torch",
        "checkpointing": "off",
        "side_by_side": min(2, threads().most),
    }


ONE_STEP = ("train.max_steps=1", "train.warmup_steps=0", "samples.count=0")


@pytest.mark.parametrize(("setting", "state"), [("off", "off"), ("config", "on")])
def test_a_run_says_what_was_decided_before_it_trains(
    setting, state, tiny_phi, data, tmp_path, capsys
):
    arguments = settings(tiny_phi, data, tmp_path, *ONE_STEP)
    assert cli(*arguments, f"model.dropout={setting}").status == 0
    said = capsys.readouterr().err.splitlines()
    lines = [
        "choices: NF4 in float32, no autocast, NF4 weights kept dequantised, adamw_torch, "
        "checkpointing off",
        f"dropout of the base model {state} (resid_pdrop 0.1 in its config)",
    ]
    start = next(at for at, line in enumerate(said) if line.startswith("choices: "))
    assert said[start].removesuffix(", 2 packs side by side") == lines[0]  # with cores to spare
    assert said[start + 1] == lines[1]
    assert any(line.startswith("training: ") for line in said[start + 2 :])


def test_processes_that_do_not_meet_are_told_before_anything_is_loaded(
    tiny_phi, data, tmp_path, monkeypatch, capsys
):
    """As where a launcher's environment is there, and the launcher is not."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("load_tokenizer", "load_base"):
        monkeypatch.setattr(f"fasttune.training.train.{name}", lambda *_: pytest.fail("loaded"))
    assert cli(*settings(tiny_phi, data, tmp_path)).status == 2
    said = capsys.readouterr().err
    failed, where, *_ = said.splitlines()
    assert failed == "error: the processes of the run could not connect to each other"
    assert where.startswith("  where: process 0 of 2: ")
    assert "what to do: start all of them with one launcher" in said
    assert not list(tmp_path.iterdir())


def test_metrics_hold_sections_and_their_mean(finished):
    train = [line for line in finished.metrics() if "loss" in line]
    evaluated = [line for line in finished.metrics() if "eval_loss" in line]
    assert [line["step"] for line in train] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in evaluated] == [0, 3, 6]
    for line in [*train, *evaluated]:
        prefix = "eval_loss" if "eval_loss" in line else "loss"
        parts = [line[f"{prefix}_{name}"] for name in ("reasoning", "response", "eos")]
        assert all(math.isfinite(part) for part in parts)
        assert min(parts) <= line[prefix] <= max(parts)
    assert train[-1]["loss"] < 0.9 * train[0]["loss"]
    assert evaluated[-1]["eval_loss_eos"] < 0.9 * evaluated[0]["eval_loss_eos"]


def test_the_last_evaluation_is_what_the_saved_adapter_gives(finished, tiny_phi):
    """Token-weighted over all held-out rows, by transformers and PEFT alone, row by row."""
    from fasttune.job import prepare

    plugins = load_plugins()
    prepared = prepare(finished.config, plugins)
    base, tokenizer = load_model(finished.model_config, choices_for(finished.model_config))
    model = PeftModel.from_pretrained(base, finished.adapter).eval()
    total = tokens = 0.0
    for row in prepared.eval:
        coded = encode(prepared.template, row, tokenizer)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([coded.input_ids])).logits[0, :-1]
        labels = torch.tensor(coded.labels)[1:]
        total += float(cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        tokens += int((labels != IGNORED).sum())
    saved = [line for line in finished.metrics() if "eval_loss" in line][-1]
    assert saved["eval_tokens"] == tokens
    assert saved["eval_loss"] == pytest.approx(total / tokens, abs=2e-4)


def test_the_adapters_of_a_quantised_model_stay_in_fp32(finished):
    from safetensors.torch import load_file

    weights = load_file(finished.adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)


INTERRUPTING = """
import os, signal
from transformers import TrainerCallback
from fasttune import hookimpl

class PressCtrlC(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)

@hookimpl
def training_callbacks(run):
    return [PressCtrlC()]
"""


def test_a_run_resumed_after_ctrl_c_has_the_losses_of_one_without_a_break(
    finished, tiny_phi, data, tmp_path, capsys
):
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "interrupting.py").write_text(INTERRUPTING)
    arguments = settings(tiny_phi, data, tmp_path / "runs", *SIX_STEPS)
    assert cli(*arguments, "--plugins-dir", str(folder)).status == 130
    run = find_run("last", tmp_path / "runs")
    assert f"fasttune run --resume {run.folder}" in capsys.readouterr().err
    assert run.manifest["status"] == "interrupted" and run.manifest["steps"] == 4
    assert last_checkpoint(run).name == "checkpoint-4"

    assert cli("generate", str(run.folder), "Hello", "--max-new-tokens", "1").status == 0
    assert "note: this is checkpoint-4 of " in capsys.readouterr().err
    run.log({"step": 5, "loss": 99.0})  # as if it had been stopped hard after a later step

    rows_there = data.read_text()
    data.write_text(rows_there.replace("Add 7 and 8.", "Add 8 and 7."))  # the run keeps its own
    assert cli("run", "--resume", str(run.folder)).status == 0
    data.write_text(rows_there)
    assert run.manifest["status"] == "done" and run.manifest["steps"] == 6
    assert len(run.metrics()) == len(finished.metrics())
    for one, other in zip(finished.metrics(), run.metrics(), strict=True):
        key = "eval_loss" if "eval_loss" in one else "loss"
        assert other["step"] == one["step"]
        assert other[key] == pytest.approx(one[key], abs=1e-4)
    capsys.readouterr()
    assert cli("run", "--resume", str(run.folder)).status == 2
    assert "is done" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_step_and_the_second_all(number):
    before = signal.getsignal(number)
    signal.signal(number, signal.default_int_handler)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), number)
            control = TrainerControl()
            interrupt.on_step_end(None, None, control)
            assert interrupt.asked and control.should_save and control.should_training_stop
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
                signal.pause()
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_a_checkpoint_is_due_when_the_last_one_is_old(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("fasttune.training.checkpoints.time.monotonic", lambda: now[0])
    saving = SaveByTime(minutes=5)
    now[0] = 1000
    saving.on_train_begin(None, None, None)

    def due(at: float) -> bool:
        now[0] = at
        control = TrainerControl()
        saving.on_step_end(None, None, control)
        return control.should_save

    assert not due(1299) and due(1300)
    saving.on_save(None, None, None)
    assert not due(1599) and due(1601)


def test_early_stopping_counts_on_over_a_resume(tiny_phi, data, tmp_path):
    """Stopped hard after its last step, the run is resumed, and takes none more."""
    arguments = settings(
        tiny_phi, data, tmp_path, "train.max_steps=30", "train.eval_steps=1",
        "train.early_stopping=2", "train.learning_rate=1.0", "train.schedule=constant",
        "train.warmup_steps=0", "train.max_grad_norm=1000", "samples.count=0",
        "train.save_total_limit=3",
    )  # fmt: skip
    assert cli(*arguments).status == 0
    run = find_run("last", tmp_path)
    last = (run.adapter / "adapter_model.safetensors").read_bytes()
    before = [(line["step"], *line) for line in run.metrics()]
    newest = last_checkpoint(run)
    steps = run.manifest["steps"]
    assert newest.name == f"checkpoint-{steps}" and steps < 30
    for resume_from in (steps, steps - 1):
        shutil.rmtree(run.adapter)
        moved = Run(run.folder.rename(tmp_path / f"moved{resume_from}"))
        for folder in moved.checkpoints.glob("checkpoint-*"):
            if int(folder.name.partition("-")[2]) > resume_from:
                shutil.rmtree(folder)
        assert cli("run", "--resume", moved.folder).status == 0
        assert moved.manifest["steps"] == steps
        assert [(line["step"], *line) for line in moved.metrics()] == before
        assert (moved.adapter / "adapter_model.safetensors").read_bytes() == last  # of the best
        run = moved


def test_a_run_goes_on_in_the_precision_that_it_began_with(finished, tmp_path, monkeypatch, capsys):
    """Here "auto" would be another one, or none for its NF4."""
    moved = Run(Path(shutil.copytree(finished.folder, tmp_path / "moved")))
    config = finished.config
    left = replace(config, model=replace(config.model, precision="auto", quantization="auto"))
    facts = {key: moved.manifest[key] for key in ("template", "data")}
    moved.restart(left, {**facts, "status": "interrupted"}, 6)
    assert moved.config.model.precision == moved.config.model.quantization == "auto"

    def stop(job, device):
        assert (job.config.model.quantization, job.config.model.precision) == ("nf4", "fp32")
        raise FasttuneError("seen", "", "")

    monkeypatch.setattr("fasttune.training.train.Training", stop)
    assert cli("run", "--resume", moved.folder).status == 2
    assert "error: seen" in capsys.readouterr().err
    moved.update({"dtype": "float16"})  # as on a T4
    monkeypatch.undo()
    assert cli("run", "--resume", moved.folder).status == 2
    assert "model.precision=fp16, on CPU" in capsys.readouterr().err


def test_early_stopping_ends_the_run_and_keeps_the_best(tiny_phi, data, tmp_path):
    arguments = settings(
        tiny_phi, data, tmp_path, "train.max_steps=30", "train.eval_steps=1",
        "train.early_stopping=2", "train.learning_rate=1.0", "train.schedule=constant",
        "train.warmup_steps=0", "train.max_grad_norm=1000", "samples.count=0",
    )  # fmt: skip
    assert cli(*arguments, "--json").status == 0
    run = find_run("last", tmp_path)
    evaluated = [line["eval_loss"] for line in run.metrics() if "eval_loss" in line]
    assert run.manifest["steps"] < 30
    assert run.manifest["best_eval_loss"] == pytest.approx(min(evaluated[1:]))


def test_overlong_rows_are_counted(tiny_phi, data, tmp_path, capsys):
    arguments = settings(tiny_phi, data, tmp_path, *ONE_STEP)
    assert cli(*arguments, "model.max_length=20").status == 2
    error = capsys.readouterr().err
    assert "dropped" in error and "no training row has 20 tokens" in error
    assert not list(tmp_path.iterdir())  # no run folder is left behind


def test_a_run_that_fails_says_so(tiny_phi, data, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError("no space left on the device")

    monkeypatch.setattr("fasttune.training.train.save_adapter", full)
    arguments = settings(tiny_phi, data, tmp_path, *ONE_STEP)
    assert cli(*arguments).status == 2
    assert "error: no space left on the device" in capsys.readouterr().err
    run = find_run("last", tmp_path)
    assert run.manifest["status"] == "failed" and not run.adapter.exists()


def test_a_run_that_learns_nothing_says_so(tiny_phi, data, tmp_path, capsys):
    arguments = settings(tiny_phi, data, tmp_path, "train.max_steps=1", "samples.count=0")
    assert cli(*arguments).status == 2
    assert capsys.readouterr().err.splitlines()[-3:] == [
        "error: nothing would be learned: the only step is warm-up, with a learning rate of 0",
        "  where: train.warmup_steps=1",
        "  what to do: set train.warmup_steps=0, or train in more steps",
    ]
    assert not list(tmp_path.iterdir())
    arguments = settings(tiny_phi, data, tmp_path, *ONE_STEP)
    assert cli(*arguments, "train.learning_rate=1e-300").status == 1  # in float32 it is 0
    assert "error: nothing was learned: every LoRA matrix B is" in capsys.readouterr().err
    run = find_run("last", tmp_path)
    assert run.manifest["status"] == "nothing learned" and not run.adapter.exists()
    assert cli("export", str(run.folder)).status == 2
    assert "train a new one with a higher train.learning_rate" in capsys.readouterr().err


def test_rows_that_hold_the_eos_token_are_refused_or_left_out(tiny_phi, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    bad = {**rows(1)[0], "output": "1 <|endoftext|> 2"}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows(10), bad]))
    arguments = settings(
        tiny_phi,
        file,
        tmp_path,
        "train.max_steps=1",
        "train.warmup_steps=0",
        "samples.count=0",
        "data.eval_fraction=0",
    )
    assert cli(*arguments).status == 2
    assert "1 of 11 training rows hold the text <|endoftext|>" in capsys.readouterr().err
    assert cli(*arguments, "data.skip_bad_rows=true").status == 0
    assert find_run("last", tmp_path).manifest["data"]["train_rows"] == 10


@pytest.mark.parametrize(
    ("name", "bf16", "capability", "dtype"),
    [("NVIDIA A10G", True, (8, 6), "bfloat16"), ("Tesla T4", False, (7, 5), "float16")],
)
def test_the_defaults_on_cuda(name, bf16, capability, dtype, monkeypatch, tmp_path):
    """Only the wiring: which settings "auto" stands for when torch reports a CUDA device."""
    from fasttune.config import RunConfig
    from fasttune.machine import this_device
    from fasttune.models import tokenizer
    from fasttune.planning.schedule import settle
    from fasttune.training.settings import training_arguments

    def supported(including_emulation=True):
        return bf16 or including_emulation  # torch takes emulation for support by default

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (15 * 10**9, 16 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 10**8)
    assert tokenizer.resolve_model(None) == "microsoft/phi-2"
    device = this_device()
    assert (device.name, device.kind, device.bf16) == (name, "cuda", bf16)
    assert device.capability == capability
    assert device.memory == 15.6e9  # what is free, what torch holds, and CUDA's own share
    choices = choices_for(ModelConfig())
    assert (choices.quantized, choices.dtype) == (True, dtype)
    monkeypatch.setattr("fasttune.training.settings.SFTConfig", dict)
    config = settle(RunConfig(), tokenizer.resolve_model(None), rows=5000)
    arguments = training_arguments(config, Run(tmp_path), True, choices)
    assert (arguments["learning_rate"], arguments["warmup_steps"]) == (2e-4, 5)
    assert arguments["optim"] == "adamw_8bit" and arguments["gradient_checkpointing"] is True
    assert (arguments["bf16"], arguments["fp16"]) == (bf16, not bf16)


# Using the result


def test_generate_streams_sections_and_the_reason_it_stopped(finished):
    status, output, _ = cli("generate", finished.folder, "Add 3 and 4.", "--max-new-tokens", "5")
    assert status == 0
    assert "reasoning" in output and "response" in output
    assert "stopped" in output and ("length: ran out" in output or "eos: ended" in output)


def test_a_batch_of_a_file_answers_as_one_by_one_and_in_order(finished, tmp_path, capsys):
    prompts = [
        {"instruction": "Add 1 and 2.", "id": 0, "meta": {"a": [1.5, None]}},
        {"instruction": "Add a long list of numbers: " + " ".join(map(str, range(40)))},
        {"instruction": "日本の首都は？", "input": "地理の問題"},
    ]
    file, answers = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in prompts))
    options = ["--max-new-tokens", "10"]
    run = str(finished.folder)
    assert cli("answer", run, str(file), "-o", str(answers), *options).status == 0
    capsys.readouterr()
    answered = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [{**row, "answer": None} for row in prompts] == [
        {**row, "answer": None} for row in answered
    ]
    for row, answer in zip(prompts, answered, strict=True):
        arguments = [row["instruction"], "--input", row.get("input", ""), "--json", *options]
        assert cli("generate", run, *arguments).status == 0
        alone = json.loads(capsys.readouterr().out)
        assert answer["answer"] == {key: alone[key] for key in answer["answer"]}
    write_rows(file, [{"instruction": "Add.", "answer": "1"}])
    ended = cli("answer", run, str(file), *options)
    assert ended.status == 2 and "as in --map output=answer" in ended.err
    ended = cli("answer", run, str(file), "--map", "output=answer", *options)
    assert json.loads(ended.out)["output"] == "1"


def test_raw_prints_the_completion_alone(finished, capsys):
    arguments = ["generate", str(finished.folder), "Add 3 and 4.", "--max-new-tokens", "6"]
    assert cli(*arguments, "--raw").status == 0
    raw = capsys.readouterr().out
    assert cli(*arguments, "--json").status == 0
    assert raw == json.loads(capsys.readouterr().out)["text"] + "\n"


def test_sampling_is_reproducible_by_its_seed(finished):
    def sample(seed: str) -> str:
        return cli(
            "generate", finished.folder, "Add 3 and 4.", "--raw", "--temperature", "2",
            "--max-new-tokens", "12", "--seed", seed,
        ).out  # fmt: skip

    assert sample("1") == sample("1") != sample("2")


def test_several_samples_of_a_question_and_their_vote(finished, tmp_path):
    sampling = "--samples", "5", "--temperature", "1.5", "--max-new-tokens", "8"
    asked = json.loads(cli("generate", finished.folder, "Add 3 and 4.", *sampling, "--json").out)
    texts = [answer["text"] for answer in asked["answers"]]
    assert len(texts) == 5 and len(set(texts)) > 1 and asked["prompt"].endswith("<|reasoning|>")
    voted = cli("generate", finished.folder, "Add 3 and 4.", *sampling, "--vote", "--json").out
    answer = json.loads(voted)
    responses = [each["sections"]["response"] for each in asked["answers"]]
    assert answer["samples"] == responses and answer["text"] in texts
    shown = cli("generate", finished.folder, "Add 3 and 4.", *sampling, "--vote").out
    assert "of 5 samples give this response" in shown

    file = write_rows(tmp_path / "asked.jsonl", [{"instruction": "Add 3 and 4."}] * 2)
    lines = cli("answer", finished.folder, file, *sampling).out.splitlines()
    assert [len(json.loads(line)["answers"]) for line in lines] == [5, 5]
    lines = cli("answer", finished.folder, file, *sampling, "--vote").out.splitlines()
    assert [len(json.loads(line)["answer"]["samples"]) for line in lines] == [5, 5]


def test_a_base_model_answers_too(tiny_phi, capsys):
    arguments = [
        "generate",
        str(tiny_phi),
        "Hello",
        "-t",
        "alpaca",
        "--max-new-tokens",
        "3",
        "--json",
    ]
    assert cli(*arguments).status == 0
    assert json.loads(capsys.readouterr().out)["prompt"].endswith("### Response:\n")


def test_chat_reads_questions_until_the_end(finished, monkeypatch, capsys):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("Add 1 and 2.\n/input x y\n/what\nAnd now?\n"))
    assert cli("chat", str(finished.folder), "--max-new-tokens", "3").status == 0
    output = capsys.readouterr().out
    assert (
        output.count("tokens]") == 2
        and "/input TEXT  give the next question this context" in output
    )


def test_runs_are_listed_and_shown(finished, capsys):
    parent = str(finished.folder.parent)
    assert cli("runs", "list", "-o", parent).status == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["run", "status", "steps"] and line.startswith(finished.name)
    assert cli("runs", "show", finished.name, "-o", parent, "--json").status == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"]["lora"]["r"] == 16 and len(shown["metrics"]) == 9
    assert cli("runs", "show", "reasonin", "-o", parent).status == 2
    assert "choose from:" in capsys.readouterr().err
