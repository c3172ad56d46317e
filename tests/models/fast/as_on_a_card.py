"""Packed rows through the code of Unsloth that a card runs, on a CPU.

test_blocks.py runs this file in a process of its own. Unsloth is imported as on a card: with
UNSLOTH_ALLOW_CPU it asks for a card's properties and gets an A10G's; Triton's kernels are
interpreted. The kernels of torch and xformers are replaced by references.
"""

from __future__ import annotations

import types
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch.overrides import TorchFunctionMode

A10G = types.SimpleNamespace(
    name="NVIDIA A10G", total_memory=24e9, major=8, minor=6, multi_processor_count=80,
    gcnArchName="",
)  # fmt: skip
torch.cuda.get_device_properties = lambda *_, **__: A10G
torch.cuda.get_device_capability = lambda *_, **__: (8, 6)
torch.cuda.current_device = lambda: 0
torch.cuda.device_count = lambda: 1
torch._C._cuda_getCurrentRawStream = lambda _: 0


class OnTheCpu(TorchFunctionMode):
    """Tensors that are asked for on a card come from the CPU: Unsloth's own layers name it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.device:  # asked only for its index
            return torch.device("cuda", *args) if isinstance(args[0], int) else torch.device(*args)
        if _is_card(kwargs.get("device")):
            kwargs["device"] = "cpu"
        if function is torch.Tensor.to:
            args = ["cpu" if _is_card(value) else value for value in args]
        return function(*args, **kwargs)


def _is_card(value):
    """A card's name, or the number that Unsloth gives for one."""
    named = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
    return named or type(value) is int


from tests.models.fast.test_blocks import (  # noqa: E402
    A100,
    EXAMPLES,
    LENGTHS,
    alone,
    assert_a_step_of_the_rows,
    assert_those_of_the_rows,
    choices_of,
    logits,
    model,  # noqa: F401
    trainer_for,
    xformers_kernel,  # noqa: F401
)

# isort: split
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402
from transformers import Gemma2Config, Gemma2ForCausalLM  # noqa: E402
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: E402
from unsloth.models import _block_compile  # noqa: E402
from unsloth.utils import hf_packed_attention as packed_attention  # noqa: E402
from unsloth.utils.packing import get_packed_info_from_kwargs  # noqa: E402

from fasttune.encoding.batches import pack  # noqa: E402
from fasttune.errors import FasttuneError  # noqa: E402
from fasttune.machine import Device  # noqa: E402
from fasttune.models.fast.fast import FastPath, speed_up  # noqa: E402

STARTS = (*accumulate(LENGTHS, initial=0),)


@pytest.fixture(autouse=True)
def unsloth_off(monkeypatch):
    """transformers' sdpa as it was, before and after each test; nothing is compiled."""
    sdpa = packed_attention._ORIG_SDPA[0] or ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setattr(packed_attention, "_ORIG_SDPA", [None])
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", sdpa)
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def unsloth_kernel(monkeypatch):
    """Unsloth's variable-length kernel by a reference, and its questions about CUDA tensors
    answered as an A100 does; that the mask is the rows' it checks itself. What reaches it is
    kept."""
    calls = []

    def reference(kernel, query, key, value, cu_seqlens, max_seqlen, scale, window):
        assert kernel is reference and window is None
        bounds = cu_seqlens.tolist()
        calls.append((tuple(bounds), max_seqlen))
        pieces = []
        for start, end in zip(bounds, bounds[1:], strict=False):
            states = (x[:, :, start:end] for x in (query, key, value))
            grouped = key.shape[1] != query.shape[1]
            pieces.append(
                scaled_dot_product_attention(
                    *states, is_causal=True, scale=scale, enable_gqa=grouped
                )
            )
        return torch.cat(pieces, 2).transpose(1, 2)

    monkeypatch.setattr(packed_attention, "_static_window", lambda *_: None)
    monkeypatch.setattr(packed_attention, "_sdpa_requested", lambda *_: False)
    monkeypatch.setattr(packed_attention, "_torch_varlen", lambda _: reference)
    monkeypatch.setattr("unsloth.utils.flash_impl.flash_impl_allows", lambda *_: True)
    monkeypatch.setattr(packed_attention, "_call_torch_varlen", reference)
    return calls


@pytest.mark.parametrize(
    "device", [A100, replace(A100, capability=(9, 0)), Device("GPU of 16 GB", "cuda", 16e9)]
)
def test_recent_cards_take_unsloths_attention(device, model):  # noqa: F811
    fast = speed_up(model, choices_of(device))
    assert (fast.attention, fast.why) == ("varlen", "")
    assert packed_attention._ORIG_SDPA[0] and model.config._attn_implementation == "sdpa"


def test_unsloth_switched_off_says_so(model, monkeypatch):  # noqa: F811
    monkeypatch.setenv("UNSLOTH_HF_PACKED_VARLEN", "0")
    fast = speed_up(model, choices_of(A100))
    assert (fast.attention, fast.why) == ("mask", "UNSLOTH_HF_PACKED_VARLEN is 0")


def test_windows_are_unsloths_affair_and_caps_keep_the_mask(model):  # noqa: F811
    model.config.sliding_window = 8
    assert speed_up(model, choices_of(A100)).attention == "varlen"
    model.config.attn_logit_softcapping = 50.0
    assert speed_up(model, choices_of(A100)).why == "its attention is capped"


def test_unsloth_reads_our_lengths():
    inputs = FastPath("varlen").row_inputs(pack(EXAMPLES, ["response"])["row_layout"])
    lengths, starts, longest = get_packed_info_from_kwargs(inputs, torch.device("cpu"))
    assert lengths.tolist() == list(LENGTHS) and longest == max(LENGTHS)
    assert tuple(starts.tolist()) == STARTS


def test_unsloths_rows_are_the_rows_alone(model, unsloth_kernel):  # noqa: F811
    fast = speed_up(model, choices_of(A100))
    assert_those_of_the_rows(model, fast)
    assert unsloth_kernel == [(STARTS, max(LENGTHS))] * model.config.num_hidden_layers


def test_lengths_that_are_not_the_positions_never_reach_the_kernel(
    model,  # noqa: F811
    unsloth_kernel,
):
    """Unsloth holds them against the mask that transformers makes of the positions."""
    fast = speed_up(model, choices_of(A100))
    batch = pack(EXAMPLES, ["response"])
    (start, middle), (_, end), *others = batch["row_layout"].rows
    wrong = replace(batch["row_layout"], rows=((start, middle - 1), (middle - 1, end), *others))
    with torch.no_grad():
        found = logits(model, {**batch, "row_layout": wrong}, fast)
        expected = torch.cat([alone(model, example) for example in EXAMPLES])
    assert not unsloth_kernel and (found - expected).abs().max() < 1e-5


def test_where_unsloths_kernel_does_not_run_the_mask_keeps_rows_apart(model):  # noqa: F811
    fast = speed_up(model, choices_of(A100))
    before = dict(packed_attention.HF_PACKED_ATTENTION_STATS)
    assert_those_of_the_rows(model, fast)
    after = packed_attention.HF_PACKED_ATTENTION_STATS
    assert after["fallback"] - before["fallback"] == model.config.num_hidden_layers
    assert after["fast"] == before["fast"]  # CPU tensors


def test_a_step_in_compiled_blocks_is_that_of_the_rows(
    tiny_phi,
    xformers_kernel,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    """A T4's: Unsloth compiles the blocks of Phi, and xformers stays outside of its graphs. They
    are traced here as there, and run as they are: Inductor alone would take a minute."""
    trainer, batches = trainer_for(tiny_phi, "memory_efficient", tmp_path)
    assert (trainer.fast.attention, len(batches)) == ("memory_efficient", 2)
    with monkeypatch.context() as patch:
        compile_with = torch.compile
        patch.setattr(
            torch, "compile", lambda f, options, **more: compile_with(f, backend="eager", **more)
        )
        patch.setattr(torch.cuda, "is_available", lambda: True)
        assert _block_compile.patch_block_compile(trainer.model) == ["PhiDecoderLayer"]
    with torch.compiler.set_stance("default"):
        assert_a_step_of_the_rows(tiny_phi, trainer)
    compiled = {vars(layer).get("_unsloth_block_mode") for layer in trainer._decoder.layers}
    assert compiled == {_block_compile._FULL}
    seen = {tuple(starts) for starts, _, _ in xformers_kernel}
    for batch in batches:
        assert (0, *(end for _, end in batch["row_layout"].rows)) in seen


def test_unsloths_own_layers_get_the_lengths(tiny_llama, tmp_path, monkeypatch):
    """Llama and its kin, on any card. The pack is longer than `model.max_length`, where Unsloth
    cuts a sequence that it does not know to be packed."""
    arrived = []
    with OnTheCpu():
        trainer, batches = trainer_for(tiny_llama, "memory_efficient", tmp_path)
        plain = "layers as loaded (model.fast_path is off by default on a GPU)"
        assert trainer.fast == FastPath("varlen", plain=plain)
        owner = trainer._decoder.layers[0].self_attn
        forward = owner.forward

        def spy(*args, **kwargs):
            arrived.append(kwargs["packed_seq_lengths"].tolist())
            return forward(*args, **kwargs)

        monkeypatch.setattr(owner, "forward", spy)
        assert_a_step_of_the_rows(tiny_llama, trainer)
    assert arrived == [[end - start for start, end in b["row_layout"].rows] for b in batches]


def test_gemma_2_whose_rows_see_each_other_is_refused(phi2_tokenizer, tmp_path):
    """Gemma 2's capped attention in Unsloth's layers has no regard for rows."""
    config = Gemma2Config(
        vocab_size=51200, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, eos_token_id=50256,
        bos_token_id=50256, pad_token_id=50256,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    phi2_tokenizer.save_pretrained(tmp_path / "gemma")
    with OnTheCpu(), pytest.raises(FasttuneError, match="packed rows see each other"):
        trainer_for(tmp_path / "gemma", "memory_efficient", tmp_path, max_length=64)
