"""What a device decides, spelt out for each kind of them, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fasttune.cli import main
from fasttune.config import PRECISIONS, LoraConfig, ModelConfig, RunConfig, TrainConfig
from fasttune.errors import FasttuneError
from fasttune.machine import Device
from fasttune.models.choices import Choices, decide, decide_for_generation
from fasttune.planning.devices import GPUS, find_device
from tests.cli.test_app import HEAVY, modules_after
from tests.conftest import choices_for

CPU = Device("CPU", "cpu", 32e9, bf16=True)
OLD_CPU = replace(CPU, bf16=False)
T4 = Choices(
    kind="cuda",
    quantization="nf4",
    dtype="float16",
    autocast=True,
    loss_scaling=True,
    attention="memory_efficient",
    fast_path=False,
    why_plain="model.fast_path is off by default on a GPU",
    nf4_copy=False,
    optimizer="adamw_8bit",
    checkpointing="unsloth",
)
AMPERE = Choices(
    kind="cuda",
    quantization="nf4",
    dtype="bfloat16",
    autocast=True,
    loss_scaling=False,
    attention="varlen",
    fast_path=False,
    why_plain="model.fast_path is off by default on a GPU",
    nf4_copy=False,
    optimizer="adamw_8bit",
    checkpointing="unsloth",
)
ON_A_CPU = Choices(
    kind="cpu",
    quantization="none",
    dtype="bfloat16",
    autocast=False,
    loss_scaling=False,
    attention="rows",
    fast_path=True,
    why_plain="",
    nf4_copy=False,
    optimizer="adamw_torch",
    checkpointing="off",
)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (GPUS["t4"], T4),
        (GPUS["a10g"], AMPERE),
        (GPUS["h100"], AMPERE),
        (find_device("16GB"), AMPERE),  # taken to be a recent one
        (CPU, ON_A_CPU),
        (OLD_CPU, replace(ON_A_CPU, dtype="float32")),
    ],
    ids=["t4", "a10g", "h100", "16GB", "cpu with bf16", "cpu without"],
)
def test_what_auto_stands_for(device, expected):
    assert decide(RunConfig(), device) == expected


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ({"precision": "fp16"}, "h100", replace(T4, attention="varlen")),
        (
            {"precision": "fp32"}, "h100",
            replace(AMPERE, dtype="float32", autocast=False, attention="mask"),
        ),
        (
            {"precision": "fp32"}, "t4",
            replace(T4, dtype="float32", autocast=False, loss_scaling=False, attention="mask"),
        ),
        ({"quantization": "none"}, "t4", replace(T4, quantization="none")),
    ],
)  # fmt: skip
def test_settings_go_before_the_device(asked, device, expected):
    assert choices_for(ModelConfig(**asked), GPUS[device]) == expected


def test_settings_go_before_a_cpu_too():
    asked = RunConfig(
        model=ModelConfig(quantization="nf4", precision="bf16"),  # emulated, but asked for
        lora=LoraConfig(dropout=0.1),
        train=TrainConfig(optimizer="adafactor", gradient_checkpointing="on"),
    )
    assert decide(asked, OLD_CPU) == replace(
        ON_A_CPU,
        quantization="nf4",
        why_plain="lora.dropout gives each layer another input",
        optimizer="adafactor",
        checkpointing="on",
    )


@pytest.mark.parametrize(
    ("asked", "device", "plain"),
    [
        ("off", CPU, "model.fast_path is off"), ("on", CPU, ""), ("auto", CPU, ""),
        ("on", GPUS["t4"], ""), ("auto", GPUS["t4"], "model.fast_path is off by default on a GPU"),
    ],
)  # fmt: skip
def test_the_fast_path_is_auto_on_a_cpu_alone(asked, device, plain):
    found = choices_for(ModelConfig(quantization="nf4", fast_path=asked), device)
    assert found.why_plain == plain and found.fast_path == (not plain)
    assert found.nf4_copy == (device is CPU and not plain)


@pytest.mark.parametrize(("asked", "copied"), [("auto", True), ("on", True), ("off", False)])
def test_nf4_on_a_cpu_is_kept_dequantised_unless_told_otherwise(asked, copied):
    found = choices_for(ModelConfig(quantization="nf4", nf4_copy=asked), CPU)
    assert found == replace(ON_A_CPU, quantization="nf4", nf4_copy=copied)
    assert ("NF4 weights kept dequantised" in str(found)) == copied


@pytest.mark.parametrize(
    ("changed", "packs"),
    [
        ({}, 2),
        ({"train": TrainConfig(batch_size=1, gradient_accumulation=4)}, 1),
        ({"train": TrainConfig(packing=False)}, 1),
        ({"train": TrainConfig(gradient_checkpointing="on")}, 1),
        ({"train": TrainConfig(neftune_noise_alpha=5.0)}, 1),
        ({"lora": LoraConfig(dropout=0.1)}, 1),
        ({"model": ModelConfig(dropout="config")}, 1),
        ({"model": ModelConfig(quantization="nf4")}, 2),
        ({"model": ModelConfig(quantization="nf4", nf4_copy="off")}, 1),  # and once for each pack
    ],
)
def test_two_packs_are_computed_side_by_side_where_a_cpu_has_two_cores(changed, packs):
    two = replace(CPU, cores=2)
    chosen = decide(RunConfig(**changed), two)
    assert chosen.side_by_side == packs
    assert ("2 packs side by side" in str(chosen)) == (packs == 2)
    assert decide(RunConfig(**changed), replace(CPU, cores=16)).side_by_side == packs
    assert decide(RunConfig(**changed), CPU).side_by_side == 1  # that has one core
    assert decide(RunConfig(**changed), replace(GPUS["t4"], cores=2)).side_by_side == 1


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (T4, "NF4 in float16, autocast and loss scaling, adamw_8bit, checkpointing unsloth"),
        (AMPERE, "NF4 in bfloat16, autocast, adamw_8bit, checkpointing unsloth"),
        (ON_A_CPU, "unquantised in bfloat16, no autocast, adamw_torch, checkpointing off"),
    ],
)
def test_choices_in_words(choices, said):
    assert str(choices) == said


def test_the_words_of_accelerate_and_of_unsloth():
    assert [c.mixed_precision for c in (T4, AMPERE, ON_A_CPU)] == ["fp16", "bf16", "no"]
    assert [
        replace(T4, checkpointing=word).unsloth_checkpointing for word in ("off", "on", "unsloth")
    ] == [False, True, "unsloth"]


def test_the_context_of_the_model_is_on_or_off_for_the_dtype():
    import torch

    for choices, dtype in ((T4, torch.float16), (AMPERE, torch.bfloat16), (ON_A_CPU, None)):
        with choices.autocasting("cpu"):
            assert torch.is_autocast_enabled("cpu") == (dtype is not None)
            assert dtype in (None, torch.get_autocast_dtype("cpu"))
    with AMPERE.autocasting("cpu"), ON_A_CPU.autocasting("cpu"):
        assert not torch.is_autocast_enabled("cpu")


# What a device does not compute in


@pytest.mark.parametrize(
    ("precision", "device", "lines"),
    [
        ("bf16", GPUS["t4"], (
            "the GPU does not support bf16",
            "model.precision=bf16, on T4",
            "set model.precision=auto or fp16",
        )),
        ("fp16", CPU, (
            "fp16 is not supported on a CPU",
            "model.precision=fp16, on CPU",
            "set model.precision=auto or fp32",
        )),
    ],
    ids=["bf16 on a T4", "fp16 on a CPU"],
)  # fmt: skip
def test_a_precision_that_the_device_lacks_is_refused_before_anything_is_loaded(
    precision, device, lines, tiny_phi, monkeypatch, capsys
):
    with pytest.raises(FasttuneError) as caught:
        choices_for(ModelConfig(precision=precision), device)
    assert (caught.value.message, caught.value.where, caught.value.hint) == lines
    told = "error: {}\n  where: {}\n  what to do: {}\n".format(*lines)

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--model", str(tiny_phi), f"model.precision={precision}"])
        assert stopped.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.endswith(told)

    import fasttune.training.train  # noqa: F401  whose names are replaced

    for name in ("load_tokenizer", "encode_rows", "load_base"):
        monkeypatch.setattr(
            f"fasttune.training.train.{name}", lambda *_: pytest.fail("it was loaded")
        )
    monkeypatch.setattr("fasttune.machine.this_device", lambda: device)
    monkeypatch.setattr("fasttune.training.train.this_device", lambda: device)
    run("run", "--template", "alpaca")
    run("plan")


def test_a_plan_for_a_gpu_refuses_what_it_does_not_compute_in(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--gpu", "t4", "model.precision=bf16"])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.endswith(
        "\nerror: the GPU does not support bf16\n"
        "  where: model.precision=bf16, on T4\n"
        "  what to do: set model.precision=auto or fp16\n"
    )


@pytest.mark.parametrize(
    ("precision", "device", "dtype"),
    [
        ("fp16", CPU, "bfloat16"),
        ("fp16", OLD_CPU, "float32"),
        ("bf16", GPUS["t4"], "float16"),
        ("bf16", OLD_CPU, "bfloat16"),  # emulated, as the run may have been
        ("fp16", GPUS["h100"], "float16"),
        ("auto", GPUS["t4"], "float16"),
    ],
)
def test_a_run_from_another_device_is_prompted_in_a_precision_of_this_one(precision, device, dtype):
    found = decide_for_generation(ModelConfig(precision=precision, quantization="nf4"), device)
    assert (found.dtype, found.quantization) == (dtype, "nf4")
    assert found == choices_for(
        ModelConfig(precision=PRECISIONS[dtype], quantization="nf4"), device
    )


def test_deciding_needs_no_torch():
    assert modules_after("plan", "--gpu", "t4", "model.precision=fp32").isdisjoint(HEAVY)
