"""`fasttune plan`: what a run would cost on a device, and what fits there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli.app import app, console, plugins, print_json
from fasttune.cli.options import Columns, Config, Data, Gpu, Model, overrides

if TYPE_CHECKING:
    from rich.table import Table

    from fasttune.planning.forecast import Forecast

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)


@app.command()
def plan(
    context: typer.Context,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Any setting as KEY=VALUE, for instance train.batch_size=2."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            "-t",
            help="Prompt format; the rows are then read and counted in tokens.",
        ),
    ] = None,
    data: Data = None,
    columns: Columns = None,
    config: Config = None,
    model: Model = None,
    gpu: Gpu = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Work out what a run takes: memory by part, arithmetic, the least time, and what fits.

    Loads no model. Without --template and --data no rows are read, and every row counts as
    model.max_length tokens. The exit status is 2 if the run does not fit.
    """
    from fasttune.config import load_config
    from fasttune.job import prepare
    from fasttune.models.tokenizer import CUDA_DEFAULT
    from fasttune.planning.plan import plan as plan_run

    chosen = overrides(data, columns, model, settings or [], template=template)
    resolved = load_config(config, chosen)
    if gpu is not None and resolved.model.name is None:
        resolved = replace(resolved, model=replace(resolved.model, name=CUDA_DEFAULT))
    rows = resolved.data.train or resolved.data.sources
    counted = template is not None or bool(rows)
    job = prepare(resolved, plugins(context, config)) if counted else resolved
    made = plan_run(job, gpu)
    if as_json:
        print_json({**made.as_dict(), "largest_batch": _largest(made)})
    else:
        _show(made)
    made.require_fit()


def _largest(made: Forecast) -> list[dict[str, int]]:
    """Rows in the largest batch that fits, by their length, without and with checkpointing."""
    from fasttune.planning.fit import largest_batch

    shape, device = made.workload.shape, made.device
    return [
        {
            "tokens": length,
            **{
                key: largest_batch(made.config, shape, device, length, checkpointing)
                for key, checkpointing in (("off", False), ("on", True))
            },
        }
        for length in LENGTHS
        if length <= shape.max_length
    ]


def _show(made: Forecast) -> None:
    from rich.console import Group

    from fasttune.planning import cost
    from fasttune.planning.forecast import spell

    out, work, device = console(), made.workload, made.device
    shape, base = work.shape, "NF4" if work.quantized else f"{8 * work.number_bytes} bits"
    out.print(
        f"{shape.name}: {shape.parameters / 1e6:,.1f} M parameters, base in {base}, "
        f"LoRA {cost.lora_parameters(work) / 1e6:.2f} M",
        markup=False,
    )
    rows = "rows" if made.rows is None else f"of {made.rows} rows"
    out.print(
        f"on {device.name} with {device.memory / 1e9:.1f} GB"
        + (f" ({device.source})" if device.source else "")
    )
    out.print(
        f"batches {rows}: {work.peak_tokens} tokens in the largest, "
        f"{work.step_tokens:.0f} in a mean step"
    )
    out.print("\n[bold]memory at the peak[/bold]")
    parts = {**made.memory.parts(), "in all": made.memory.peak}
    table = _table("", "GB", left=1)
    for name, size in parts.items():
        table.add_row(name, f"{size / 1e9:.2f}")
    out.print(table)
    decided = made.config.train.gradient_checkpointing
    out.print(f"checkpointing {decided}; {'fits' if made.fits else 'does not fit'}")
    out.print("\n[bold]an optimiser step[/bold]")
    out.print(Group(*_step(made)))
    out.print("\n[bold]largest batch that fits[/bold], with a tenth of the memory to spare")
    table = _table("tokens a row", "no checkpointing", "checkpointing", left=0)
    for line in _largest(made):
        table.add_row(*(str(line[key]) for key in ("tokens", "off", "on")))
    out.print(table)
    if made.steps is not None and made.time is not None:
        bound, expected = made.steps * made.time.bound, made.steps * made.time.expected
        out.print(
            f"\n{made.steps} steps: at least {spell(bound)}, {spell(expected)} at "
            f"{cost.EFFICIENCY:.0%} of the peak; estimates, not measured"
        )


def _step(made: Forecast) -> list[str]:
    from fasttune.planning import cost
    from fasttune.planning.forecast import spell

    work, time = made.workload, made.time
    per_token = cost.flops_per_token(work)
    lines = [
        f"{per_token * work.step_tokens / 1e12:.3g} TFLOP, {per_token / 1e9:.2f} GFLOP a token, "
        f"{work.scored:.0f} keys a query",
        f"{cost.dequantized_bytes(work, made.device.kind) / 1e9:.1f} GB dequantised",
    ]
    if time is None:
        return [*lines, "no time: the peak of this device is not known"]
    return [
        *lines,
        f"at least {spell(time.bound)} (matrix products {spell(time.matmul)}, dequantisation "
        f"{spell(time.dequantisation)}); {spell(time.expected)} at {cost.EFFICIENCY:.0%} of the "
        "peak",
    ]


def _table(*headings: Any, left: int) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right")
    return table
