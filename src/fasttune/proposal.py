"""Propose settings for new rows."""

from __future__ import annotations

from dataclasses import replace

from fasttune.config import RunConfig, load_config
from fasttune.data.divide import with_template
from fasttune.data.sources import columns_of
from fasttune.data.suggest import propose_columns
from fasttune.files import absolute
from fasttune.job import prepare
from fasttune.planning.forecast import plan
from fasttune.planning.schedule import settle
from fasttune.plugins.registry import Plugins
from fasttune.terminal import muted


def propose(
    config: RunConfig, plugins: Plugins, gpu: str | None = None
) -> tuple[RunConfig, list[str]]:
    """Propose columns and a template for the rows of `data.train`, and a batch that fits.

    Args:
        config: its `data.columns` stay if it has any, and its template unless it is "auto".
        gpu: see `plan`.

    Returns:
        the settings, and lines that explain them.
    """
    assert config.data.train is not None, "there are rows"
    names = columns_of(config.data.train)
    columns = config.data.columns or propose_columns(names)
    lines = [f"columns: {', '.join(names)}"]
    lines += [f"{ours} is taken from {theirs}" for ours, theirs in columns.items()]
    data = replace(config.data, train=absolute(config.data.train), columns=columns)
    config = with_template(replace(config, data=data))
    with muted("fasttune.encoding", "fasttune.planning.schedule"):
        job = prepare(config, plugins)
        forecast = plan(job, gpu)
    lines.append(forecast.line())
    if not forecast.fits:
        if not forecast.suggestion:
            forecast.require_fit()
        lines.append(f"with {' '.join(forecast.suggestion)} it fits")
        config = load_config(None, forecast.suggestion, base=config)
    return settle(config, forecast.workload.shape.name, len(job.train)), lines
