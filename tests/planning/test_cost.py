"""The formulas against figures worked out apart from them, and against what autograd keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fasttune.config import ModelConfig, load_config
from fasttune.errors import FasttuneError
from fasttune.machine import Device, available_ram, cpu_has_bf16, this_device
from fasttune.models.architectures import FAMILIES
from fasttune.planning import cost
from fasttune.planning.cost import Workload
from fasttune.planning.devices import GPUS, find_device
from fasttune.planning.fit import decide_memory, largest_batch, suggest, workload_of
from fasttune.planning.forecast import forecast
from fasttune.planning.shape import read_shape, shape_of

PHI2 = read_shape("microsoft/phi-2")
DEMO = read_shape("SmolLM2-135M-Instruct")
GB = 10**9
TWO_OF_2048 = Workload(
    shape=PHI2,
    quantized=True,
    dtype="bfloat16",
    optimizer_bytes=8,
    checkpointing=False,
    peak_tokens=4096,
    step_tokens=4096,
    attended=2048,
)
CHECKPOINTED = replace(TWO_OF_2048, checkpointing=True)


def config(**overrides):
    return load_config(None, [(key.replace("__", "."), v) for key, v in overrides.items()])


# Memory


def test_phi_2_with_two_rows_of_2048():
    memory = cost.memory(TWO_OF_2048, "cuda")
    # 2 516.6 M weights in 4.127 bits, and 263.1 M parameters in 16
    assert memory.weights == pytest.approx(1.298 * GB + 0.526 * GB, rel=1e-3)
    assert memory.adapters == 23_592_960 * 16
    # 16.5 widths of 2560 x 2 bytes for 4096 tokens and 32 layers, and 2 516.6 M weights in 16 bits
    assert memory.activations == pytest.approx(11.07 * GB + 5.03 * GB, rel=1e-3)
    assert memory.peak == pytest.approx(19.5 * GB, rel=0.01)
    assert cost.memory(CHECKPOINTED, "cuda").activations == pytest.approx(0.671 * GB, rel=1e-3)
    assert cost.memory(CHECKPOINTED, "cuda").peak == pytest.approx(4.38 * GB, rel=0.01)


def test_what_is_out_of_nf4_at_once_on_a_gpu():
    block = 2 * PHI2.linear_weights / 32
    assert cost.dequantized_held(TWO_OF_2048, "cuda") == 32 * block
    assert cost.dequantized_held(CHECKPOINTED, "cuda") == block
    llama = replace(TWO_OF_2048, shape=DEMO)  # in Unsloth's own layers: the largest of the MLP's
    assert cost.dequantized_held(llama, "cuda") == 2 * 576 * 1536
    assert cost.dequantized_held(replace(TWO_OF_2048, quantized=False), "cuda") == 0
    # With Phi's layers in few functions the largest matrix, and fewer widths beside it.
    fast = replace(TWO_OF_2048, fast=True)
    assert cost.dequantized_held(fast, "cuda") == 2 * 2560 * 10240
    kept = cost.memory(fast, "cuda").activations
    assert kept == 11 * 2 * 2560 * 4096 * 32  # 16.5 as transformers has them
    assert kept < cost.memory(TWO_OF_2048, "cuda").activations - 32 * block


def test_the_fast_path_counts_where_the_settings_put_it():
    asked = config(model__fast_path="on")
    assert workload_of(asked, PHI2, gpu(16)).fast and not workload_of(asked, DEMO, gpu(16)).fast
    assert not workload_of(config(), PHI2, gpu(16)).fast
    cpu = Device("CPU", "cpu", 24 * GB, bf16=True)
    off = config(model__fast_path="off")
    assert workload_of(config(), DEMO, cpu).fast and not workload_of(off, DEMO, cpu).fast


def test_nf4_has_4_127_bits_a_weight():
    assert pytest.approx(4.127, abs=1e-3) == cost.NF4_BITS


def test_a_cpu_holds_the_base_of_nf4_dequantised_as_well():
    on_gpu, on_cpu = (cost.memory(CHECKPOINTED, kind).weights for kind in ("cuda", "cpu"))
    assert on_cpu - on_gpu == 2 * PHI2.linear_weights
    plain = cost.memory(replace(CHECKPOINTED, quantized=False), "cpu")
    assert plain.weights == 2 * PHI2.parameters
    assert cost.dequantized_bytes(CHECKPOINTED, "cpu") == 0


def test_a_cpu_may_dequantise_in_each_pass():
    kept, again = (
        cost.memory(replace(CHECKPOINTED, copied=copied), "cpu") for copied in (True, False)
    )
    assert kept.weights - again.weights == 2 * PHI2.linear_weights
    assert again.working - kept.working == 2 * 2560 * 10240  # the largest matrix
    written = cost.dequantized_bytes(replace(CHECKPOINTED, copied=False), "cpu")
    assert written == 3 * 2 * PHI2.linear_weights


def test_files_are_mapped_while_a_cpu_loads():
    converted = cost.memory(CHECKPOINTED, "cpu")  # Phi-2's files are in fp16
    alike = replace(CHECKPOINTED, shape=replace(PHI2, stored="bfloat16"))
    mapped = cost.memory(alike, "cpu")
    assert mapped.weights == converted.weights  # what has been quantised is given back
    # The copies are made when that is over; embeddings are read from there.
    assert converted.loading == 2 * (PHI2.parameters - PHI2.linear_weights) and mapped.loading == 0
    again = cost.memory(replace(alike, copied=False), "cpu")
    assert again.loading == 2 * PHI2.linear_weights
    assert again.needed == again.peak - again.loading + again.training
    unquantized = cost.memory(replace(alike, quantized=False), "cpu")
    assert unquantized.weights == 2 * PHI2.parameters and unquantized.loading == 0


def test_loading_counts_where_it_takes_more_than_training():
    small = replace(TWO_OF_2048, shape=DEMO, quantized=False, peak_tokens=1)
    memory = cost.memory(small, "cpu")
    assert memory.parts()["loading"] == 4 * DEMO.parameters
    assert memory.peak == memory.process + (2 + 4) * DEMO.parameters


def test_evaluation_and_answers_count_where_they_take_more_than_training():
    asked = {"train__batch_size": 1, "train__gradient_checkpointing": "on"}
    lengths = [100, 200, 200, 200]
    work = workload_of(config(**asked), PHI2, gpu(16), lengths)
    assert (work.eval_tokens, work.answered) == (800, 6)
    assert (work.prompt_tokens, work.new_tokens) == (200, 128)
    memory = cost.memory(work, "cuda")
    cache = 6 * 328 * 2 * 2560 * 2  # prompts and answers: keys and values of one layer
    passing = 6 * 200 * 2560 * 2 * 18.5 + 2 * PHI2.linear_weights / 32  # a block out of NF4
    assert memory.answers == 33 * cache + passing + 6 * PHI2.vocab * cost.LOGITS
    assert memory.parts()["answers"] == memory.answers > memory.training - memory.adapters
    assert memory.peak - memory.answers == memory.weights + memory.adapters + memory.process
    alone = workload_of(
        config(samples__count=0, data__eval_fraction=0, **asked), PHI2, gpu(16), lengths
    )
    alone = cost.memory(alone, "cuda")
    assert (alone.evaluation, alone.answers) == (0, 0) and "working" in alone.parts()
    evaluated = workload_of(config(samples__count=0, **asked), PHI2, gpu(16), lengths)
    large = cost.memory(replace(evaluated, eval_tokens=16 * 800), "cuda")
    assert large.parts()["evaluation"] == large.evaluation > memory.evaluation


def test_phi_2_learns_gsm8k_in_8_gb():
    """The mapped files need not be in memory while it loads."""
    asked = config(model__quantization="nf4", samples__count=0)
    made = forecast(asked, PHI2, Device("CPU", "cpu", 8 * GB, matmul=1e11), [225] * 64)
    assert made.fits and made.memory.peak > 8 * GB > made.memory.needed / 0.9
    assert (made.config.model.nf4_copy, made.workload.checkpointing) == ("off", False)


def test_answers_may_be_what_has_to_be_fewer():
    made = forecast(config(samples__batch_size=64, samples__count=64), PHI2, gpu(16))
    assert not made.fits
    assert made.suggestion == ("train.eval_batch_size=1", "samples.batch_size=1")


def test_on_a_cpu_rows_of_different_lengths_leave_holes_in_the_heap():
    lengths = {False: [200, 200], True: [100, 300]}
    alike, varied = (
        workload_of(config(train__batch_size=2), DEMO, Device("CPU", "cpu", 64 * GB), found)
        for found in lengths.values()
    )
    assert [alike.varied, varied.varied] == list(lengths)
    same = replace(varied, varied=False)
    ratio = cost.memory(varied, "cpu").activations / cost.memory(same, "cpu").activations
    assert ratio == pytest.approx(cost.VARIED_SLACK / cost.CPU_SLACK)
    assert cost.memory(varied, "cuda") == cost.memory(same, "cuda")


@pytest.mark.parametrize("path", ["transformers", "fast", "fast fp32"])
@pytest.mark.parametrize("kind", ["llama", "phi"])
def test_widths_are_what_autograd_keeps(kind, path):
    """Tensors saved by a block with LoRA, by the difference of two depths."""
    from fasttune.models.fast.fast import speed_up
    from fasttune.models.fast.fused import fuse_gelu

    # isort: split
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from fasttune.encoding.batches import Layout
    from tests.conftest import choices_for

    dtype = torch.float32 if path == "fast fp32" else torch.bfloat16
    layers = (1, 3)

    hidden, tokens = 320, 128
    saved = []
    for count in layers:
        settings = {
            "vocab_size": 64,
            "hidden_size": hidden,
            "intermediate_size": 1280,
            "num_hidden_layers": count,
            "num_attention_heads": 4,
            "num_key_value_heads": 2 if kind == "llama" else 4,
        }
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
        assert fuse_gelu(model) == (count if kind == "phi" else 0)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=list(FAMILIES[kind].targets)))
        model = model.to(dtype)
        inputs = {}
        if path != "transformers":
            fast = speed_up(model, choices_for(ModelConfig()))
            assert fast.by_row and (fast.layers or fast.groups)
            layout = Layout(0, ((0, tokens // 2), (tokens // 2, tokens)))
            inputs = {"row_layout": layout, "attention_mask": torch.empty(1, 1, 1, 1)}
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor, weights=weights, kept=kept):
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        states = torch.randn(1, tokens, hidden, dtype=dtype, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.get_base_model().model(inputs_embeds=states, use_cache=False, **inputs)
        saved.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
    counted = (saved[1] - saved[0]) / 2 / (dtype.itemsize * hidden * tokens)
    shape = shape_of({**settings, "model_type": kind}, kind)
    # Besides the wide tensors there are LoRA's inner ones, r a matrix, and a few numbers a token;
    # layers in NF4, which transformers' widths are for, keep 1.4 widths more in Phi.
    expected = (
        cost.widths(shape)
        if path == "transformers"
        else cost.fast_widths(shape, tokens / 2, dtype.itemsize)
    )
    assert counted == pytest.approx(expected, abs=1.5)


# Arithmetic and time


def test_flops_of_phi_2():
    # forward 5033.2 + 335.5 + 47.2 + 262.1 MFLOP, backward 5033.2 + 838.9 + 94.4 + 262.1
    assert cost.flops_per_token(TWO_OF_2048) == pytest.approx(11.907e9, rel=1e-4)
    # and once more 5033.2 + 335.5 + 47.2
    assert cost.flops_per_token(CHECKPOINTED) == pytest.approx(17.322e9, rel=1e-4)


def test_time_on_an_a100():
    time = cost.step_time(CHECKPOINTED, GPUS["a100"])
    assert time.matmul == pytest.approx(4096 * 17.322e9 / 312e12, rel=1e-3)
    # three passes that each read 4.127 and write 16 bits a weight
    moved = 3 * 2_516_582_400 * (4.127 + 16) / 8
    assert time.dequantisation == pytest.approx(moved / 1555e9, rel=1e-3)
    assert time.expected == pytest.approx(2.5 * time.bound)
    assert cost.step_time(replace(CHECKPOINTED, dtype="float32"), GPUS["a100"]) is None
    assert cost.step_time(CHECKPOINTED, find_device("16GB")) is None


# Devices


@pytest.mark.parametrize(
    ("word", "memory"),
    [("t4", 16), ("RTX 4090", 24), ("A100-80GB", 80), ("16GB", 16), ("7.5 gb", 7.5)],
)
def test_gpus_by_name_and_by_memory(word, memory):
    assert find_device(word).memory == memory * GB


@pytest.mark.parametrize("word", ["4080", "0GB", "gb", ""])
def test_an_unknown_gpu_is_an_error(word):
    with pytest.raises(FasttuneError, match="no GPU is called") as caught:
        find_device(word)
    assert "16GB" in caught.value.hint


def test_every_gpu_names_its_source():
    assert all(gpu.source and gpu.matmul and gpu.bandwidth for gpu in GPUS.values())


def test_bf16_is_taken_where_unsloth_takes_it():
    import tests.unsloth_first  # noqa: F401

    # isort: split
    from unsloth import is_bfloat16_supported

    if torch.cuda.is_available():
        pytest.skip("of a CPU")
    assert cpu_has_bf16() == this_device().bf16 == is_bfloat16_supported()


def test_ram_is_limited_by_a_control_group(tmp_path, monkeypatch):
    for name, text in (("max", "1000"), ("current", "400"), ("stat", "anon 1\ninactive_file 50\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr("fasttune.machine.Path", lambda _: tmp_path)
    import psutil

    held = psutil.Process().memory_info().rss
    assert 650 <= available_ram() < 650 + 2 * held


# What fits


def gpu(memory: float) -> Device:
    return replace(find_device("16GB"), memory=memory * GB)


def test_the_longest_rows_count_for_memory_and_the_mean_for_time():
    work = workload_of(config(train__batch_size=2), PHI2, gpu(16), [100, 300, 200])
    assert (work.peak_tokens, work.step_tokens, work.attended) == (500, 400, 140_000 / 600)
    padded = config(train__batch_size=2, train__packing=False)
    assert workload_of(padded, PHI2, gpu(16), [100, 300, 200]).peak_tokens == 600
    few = config(train__batch_size=8, train__gradient_accumulation=2)
    assert workload_of(few, PHI2, gpu(16), [100, 300]).peak_tokens == 400
    assert workload_of(few, PHI2, gpu(16)).peak_tokens == 8 * 1024


def test_auto_checkpoints_only_where_memory_needs_it():
    asked = config(model__max_length=2048, train__batch_size=2)
    words = {
        (memory, kind): decide_memory(
            asked, PHI2, replace(gpu(memory), kind=kind)
        ).train.gradient_checkpointing
        for memory, kind in ((16, "cuda"), (40, "cuda"), (16, "cpu"), (100, "cpu"))
    }
    assert words == {
        (16, "cuda"): "unsloth",
        (40, "cuda"): "off",
        (16, "cpu"): "on",
        (100, "cpu"): "off",
    }
    kept = config(train__gradient_checkpointing="on")
    assert decide_memory(kept, PHI2, gpu(1000)) == kept


@pytest.mark.parametrize(
    ("memory", "asked", "copy", "checkpointing"),
    [
        (20, {}, "on", "off"),
        (18, {}, "off", "off"),
        (13, {}, "on", "on"),
        (8, {}, "off", "on"),
        (2, {}, "off", "on"),  # fits nowhere
        (40, {"model__nf4_copy": "off"}, "off", "off"),
        (9, {"model__nf4_copy": "on"}, "on", "on"),
        (9, {"train__gradient_checkpointing": "off"}, "off", "off"),
    ],
)
def test_nf4_on_a_cpu_takes_the_fastest_that_fits(memory, asked, copy, checkpointing):
    device = Device("CPU", "cpu", memory * GB, bf16=True)
    found = decide_memory(config(model__quantization="nf4", **asked), PHI2, device)
    assert (found.model.nf4_copy, found.train.gradient_checkpointing) == (copy, checkpointing)


@pytest.mark.parametrize(
    ("memory", "settings", "expected"),
    [
        (16, {}, ("train.batch_size=1", "train.gradient_accumulation=2")),
        (8, {}, ("train.gradient_checkpointing=unsloth",)),
        (
            4.6,
            {"train__gradient_checkpointing": "on", "model__quantization": "none"},
            ("model.quantization=nf4", "train.batch_size=1", "train.gradient_accumulation=2"),
        ),
        (2, {}, ()),
    ],
)
def test_the_setting_that_would_fit(memory, settings, expected):
    asked = {"model__max_length": 2048, "train__batch_size": 2, "samples__count": 0} | settings
    asked = {"train__gradient_checkpointing": "off"} | asked
    made = forecast(config(**asked), PHI2, gpu(memory))
    assert not made.fits and made.suggestion == expected
    with pytest.raises(FasttuneError, match="the run needs") as caught:
        made.require_fit()
    assert caught.value.hint.endswith("; or try it anyway: train.ignore_plan=true")
    if not expected:
        return
    assert " ".join(expected) in caught.value.hint
    changes = [tuple(word.split("=")) for word in expected]
    asked = load_config(None, [*((k.replace("__", "."), v) for k, v in asked.items()), *changes])
    assert forecast(asked, PHI2, gpu(memory)).fits  # it holds what it promises


def test_on_a_cpu_nf4_without_a_copy_may_be_the_way_out():
    device = Device("CPU", "cpu", 9 * GB, bf16=True, matmul=1e11)
    found = suggest(config(), PHI2, device)
    assert "model.quantization=nf4" in found
    made = forecast(load_config(None, [tuple(word.split("=")) for word in found]), PHI2, device)
    assert made.fits and made.config.model.nf4_copy == "off"


def test_the_largest_batch_is_the_largest():
    asked = config()
    count = largest_batch(asked, PHI2, gpu(16), 512, checkpointing=True)
    fitting, over = (
        cost.memory(
            workload_of(
                config(
                    model__max_length=512,
                    train__batch_size=rows,
                    train__gradient_checkpointing="on",
                ),
                PHI2,
                gpu(16),
            ),
            "cuda",
        ).peak
        for rows in (count, count + 1)
    )
    assert fitting <= 0.9 * 16 * GB < over
    assert largest_batch(asked, PHI2, gpu(2), 512, checkpointing=True) == 0


def test_the_short_form_says_what_was_decided():
    asked = config(model__max_length=2048, train__batch_size=2, train__max_steps=90)
    line = forecast(asked, PHI2, GPUS["a100"]).line()
    assert line.startswith("plan: 19.3 of 40.0 GB (activations 16.1, weights 1.8")
    assert "base in NF4, checkpointing off, 90 steps, seconds to minutes" in line
    on_cpu = forecast(asked, DEMO, Device("CPU", "cpu", 64 * GB, matmul=1e11)).line()
    assert "base unquantised" in on_cpu and "about " in on_cpu
    assert "about" not in forecast(asked, PHI2, gpu(16)).line()
