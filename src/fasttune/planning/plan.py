"""Plan a run on this machine or a named GPU, without loading the model."""

from __future__ import annotations

import logging

from fasttune import machine
from fasttune.config import RunConfig
from fasttune.encoding.cache import encode_rows
from fasttune.errors import FasttuneError
from fasttune.job import Job
from fasttune.models.demo import DEMO_MODEL
from fasttune.models.tokenizer import CUDA_DEFAULT, load_tokenizer
from fasttune.planning.devices import find_device, with_figures
from fasttune.planning.fit import largest_batch
from fasttune.planning.forecast import Forecast, forecast
from fasttune.planning.shape import read_shape

log = logging.getLogger(__name__)

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
"""Lengths in tokens for which `largest_batches` counts rows."""


def plan(job: Job | RunConfig, gpu: str | None = None) -> Forecast:
    """Forecast the memory, arithmetic and minimum time of a run, and whether it fits.

    Args:
        job: its rows are counted in tokens. For a config, each row counts as `model.max_length`.
        gpu: a name, as t4, or a memory, as 16GB; by default this machine.

    Raises:
        FasttuneError: there is no such GPU, or the planner does not know the model's shape.
    """
    config = job if isinstance(job, RunConfig) else job.config
    device = find_device(gpu) if gpu is not None else with_figures(machine.this_device())
    name = config.model.name or (CUDA_DEFAULT if device.kind == "cuda" else DEMO_MODEL)
    shape = read_shape(name)
    lengths = None if isinstance(job, RunConfig) else _lengths(job, name)
    return forecast(config, shape, device, lengths)


def largest_batches(plan: Forecast) -> list[dict[str, int]]:
    """Count the rows in the largest batch that fits, by their length in tokens.

    Returns:
        For each length: `tokens`, and the rows without ("off") and with checkpointing ("on").
    """
    shape, device = plan.workload.shape, plan.device
    return [
        {
            "tokens": length,
            "off": largest_batch(plan.config, shape, device, length, False),
            "on": largest_batch(plan.config, shape, device, length, True),
        }
        for length in LENGTHS
        if length <= shape.max_length
    ]


def _lengths(job: Job, model: str) -> list[int] | None:
    """Count the tokens of the training rows. Returns None if the tokenizer cannot be loaded."""
    try:
        tokenizer = load_tokenizer(job.model if model == DEMO_MODEL else model, job.template.end)
    except FasttuneError as error:
        reason = error.where or error.message
        log.info("rows not counted, taken as model.max_length tokens: %s", reason)
        return None
    return encode_rows(job.template, job.train, tokenizer, job.config, "training").lengths
