"""`fasttune plan`: the memory and time of a run on a device, and what fits there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from fasttune.cli import options
from fasttune.cli.app import app, plugins, print_json, table
from fasttune.cli.options import expand
from fasttune.machine import GB
from fasttune.terminal import console

if TYPE_CHECKING:
    from fasttune.planning.forecast import Forecast


@app.command()
@expand
def plan(
    context: typer.Context,
    settings: options.AllSettings,
    gpu: options.Gpu = None,
    as_json: options.Json = False,
) -> None:
    """Forecast a run: memory by part, arithmetic, minimum time, and what fits.

    Loads no model. Without --template and --data fasttune reads no rows, and counts each row as
    model.max_length tokens. The exit status is 2 if the run does not fit.
    """
    from fasttune.job import prepare
    from fasttune.models.tokenizer import CUDA_DEFAULT
    from fasttune.planning.forecast import plan as plan_run

    resolved = settings.load()
    if gpu is not None and resolved.model.name is None:
        resolved = replace(resolved, model=replace(resolved.model, name=CUDA_DEFAULT))
    rows = resolved.data.train or resolved.data.sources
    counted = settings.template is not None or bool(rows)
    job = prepare(resolved, plugins(context, settings.config)) if counted else resolved
    forecast = plan_run(job, gpu)
    if as_json:
        print_json({**forecast.as_dict(), "largest_batch": forecast.largest_batches()})
    else:
        _show(forecast)
    forecast.require_fit()


PARTS = {
    "weights": "the base model",
    "adapters": "LoRA's parameters, their gradients and the optimizer's state",
    "activations": "what the forward pass keeps for the backward pass; fewer with checkpointing",
    "working": "logits of the loss, and one block's backward pass",
    "loading": "the model's files while they are read; the system frees them if memory is short",
    "evaluation": "a batch of held-out rows (train.eval_batch_size)",
    "answers": "keys and values while sample rows are answered together (samples.batch_size)",
    "process": "the libraries, and CUDA's context on a GPU",
}
"""What the parts of a forecast's memory are."""


def _show(forecast: Forecast) -> None:
    out, work, device = console(), forecast.workload, forecast.device
    shape, base = work.shape, "NF4" if work.quantized else f"{8 * work.number_bytes} bits"
    out.print(
        f"{'fits' if forecast.fits else 'does not fit'}: {forecast.memory.needed / GB:.1f} of "
        f"{device.memory / GB:.3g} GB ({device.name})",
        style="bold",
    )
    if forecast.steps is not None:
        length = forecast.duration or "the speed of this device is not known"
        out.print(f"{forecast.steps} steps: {length} (an estimate)")
    out.print(
        f"\n{shape.name}: {shape.parameters / 1e6:,.1f} M parameters, base in {base}, "
        f"LoRA {work.lora_parameters / 1e6:.2f} M",
    )
    rows = f"{forecast.rows} rows; " if forecast.rows is not None else ""
    out.print(
        f"{rows}the largest batch has {work.peak_tokens} tokens, a mean step {work.step_tokens:.0f}"
    )
    out.print(f"checkpointing {forecast.config.train.gradient_checkpointing}")
    if device.source:
        out.print(f"speed of {device.name}: {device.source}")
    out.print("\nmemory at the peak", style="bold")
    sizes = [
        (name, f"{size / GB:.2f}", PARTS[name]) for name, size in forecast.memory.parts().items()
    ]
    sizes.append(("in all", f"{forecast.memory.peak / GB:.2f}", ""))
    out.print(table(("", "GB", "what it is"), sizes, right=("GB",)))
    out.print("\nan optimiser step", style="bold")
    out.print("\n".join(_step(forecast)))
    out.print("\nlargest batch that fits, with a tenth of the memory to spare", style="bold")
    headings = ("tokens a row", "no checkpointing", "checkpointing")
    batches = [list(map(str, line.values())) for line in forecast.largest_batches()]
    out.print(table(headings, batches, right=headings))


def _step(forecast: Forecast) -> Iterator[str]:
    from fasttune.planning import cost
    from fasttune.planning.forecast import spell

    work, time = forecast.workload, forecast.time
    per_token = cost.flops_per_token(work)
    yield (
        f"{per_token * work.step_tokens / 1e12:.3g} TFLOP, {per_token / 1e9:.2f} GFLOP a token, "
        f"{work.scored:.0f} keys a query"
    )
    yield f"{cost.dequantized_bytes(work, forecast.device.kind) / 1e9:.1f} GB dequantised"
    if time is None:
        yield "no time: the peak of this device is not known"
    else:
        yield (
            f"at least {spell(time.bound)} (matrix products {spell(time.matmul)}, dequantisation "
            f"{spell(time.dequantisation)}); {spell(time.expected)} at {cost.EFFICIENCY:.0%} of "
            "the peak"
        )
