"""The step that a config means on a device: how its rows attend, and what that costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fasttune.config import ModelConfig, RunConfig, TrainConfig
from fasttune.planning import cost
from fasttune.planning.devices import GPUS
from fasttune.planning.fit import largest_batch, workload_of
from fasttune.planning.forecast import forecast
from fasttune.planning.shape import read_shape

PHI2 = read_shape("microsoft/phi-2")


def phi(precision="auto", batch_size=8, length=200, **more):
    train = TrainConfig(
        batch_size=batch_size, gradient_accumulation=1, gradient_checkpointing="off", **more
    )
    return RunConfig(model=ModelConfig(precision=precision, max_length=length), train=train)


@pytest.mark.parametrize("gpu", ["t4", "a100"])
def test_rows_that_attend_by_themselves_cost_what_they_cost_alone(gpu):
    work = workload_of(phi(), PHI2, GPUS[gpu], [100, 300] * 100)
    attended = (100**2 + 300**2) / 400
    assert (work.attended, work.masked, work.scored) == (attended, 0, attended / 2)
    alone = workload_of(phi(batch_size=1, length=300), PHI2, GPUS[gpu], [100, 300] * 100)
    assert cost.flops_per_token(work) == cost.flops_per_token(alone)


@pytest.mark.parametrize(
    ("rows", "length", "more"),
    [(8, 200, 0.16), (16, 256, 0.42)],  # packs of 1,600 and of 4,096 tokens
)
def test_a_mask_costs_the_whole_pack(rows, length, more):
    """Queries are multiplied with all keys of the pack, and nothing is skipped: S is twice T."""
    t4 = GPUS["t4"]
    apart = workload_of(phi(batch_size=rows, length=length), PHI2, t4)
    masked = workload_of(phi("fp32", batch_size=rows, length=length), PHI2, t4)
    assert masked.masked == masked.scored == rows * length and apart.scored == length / 2
    added = cost.flops_per_token(masked) - cost.flops_per_token(apart)
    assert added == 14 * (rows * length - length / 2) * 2560 * 32
    assert added / cost.flops_per_token(apart) == pytest.approx(more, abs=0.005)
    said = forecast(phi("fp32", batch_size=rows, length=length), PHI2, t4).as_dict()
    assert (said["attention"], said["keys_per_query"]) == ("mask", rows * length)


@pytest.mark.parametrize(
    "config",
    [
        phi("fp32", batch_size=1),  # a row by itself needs none
        phi("fp32", packing=False),  # and padded rows have one of their own
    ],
)
def test_without_several_rows_in_a_pack_there_is_no_mask(config):
    assert workload_of(config, PHI2, GPUS["t4"]).masked == 0


def test_unsloths_own_layers_need_no_mask_in_fp32_either():
    llama = read_shape("SmolLM2-135M-Instruct")
    assert workload_of(phi("fp32"), llama, GPUS["t4"]).masked == 0


def test_every_block_keeps_the_mask_as_numbers():
    work = workload_of(phi("fp32"), PHI2, GPUS["t4"])
    plain = replace(work, masked=0.0)
    for checkpointing, masks in ((False, 32), (True, 1)):
        with_mask, without = (
            cost.memory(replace(j, checkpointing=checkpointing), "cuda") for j in (work, plain)
        )
        assert with_mask.activations - without.activations == masks * 4 * 1600**2


def test_torch_keeps_a_mask_of_numbers_for_each_call():
    """What the formula says of every block, seen in what autograd keeps of two calls."""
    kept = []

    def keep(tensor):
        kept.append((tuple(tensor.shape), tensor.dtype, tensor.data_ptr()))
        return tensor

    states = torch.randn(1, 2, 16, 8, requires_grad=True)
    mask = torch.ones(1, 1, 16, 16, dtype=torch.bool).tril()
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = [attend(states, states, states, attn_mask=mask) for _ in range(2)]
    masks = [found for found in kept if found[0] == (1, 1, 16, 16)]
    assert len(outputs) == len(masks) == len({pointer for _, _, pointer in masks})
    assert {dtype for _, dtype, _ in masks} == {torch.float32}


def test_the_largest_batch_counts_the_mask_of_its_rows():
    t4 = GPUS["t4"]
    most = largest_batch(phi("fp32"), PHI2, t4, 256, checkpointing=True)
    assert most > 1
    for rows, fits in ((most, True), (most + 1, False)):
        asked = phi("fp32", batch_size=rows, length=256)
        asked = replace(asked, train=replace(asked.train, gradient_checkpointing="on"))
        memory = cost.memory(workload_of(asked, PHI2, t4), "cuda").peak
        assert (memory <= 0.9 * t4.memory) == fits
