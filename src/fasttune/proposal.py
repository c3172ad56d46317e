"""Settings for rows that nobody has looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

from fasttune.config import RunConfig, load_config
from fasttune.data.check import column_names
from fasttune.data.columns import propose_columns
from fasttune.data.load import LOOKAHEAD, load
from fasttune.data.sources import reader
from fasttune.files import absolute
from fasttune.inspection.survey import default_template
from fasttune.job import prepare
from fasttune.logs import muted
from fasttune.planning.plan import plan
from fasttune.plugins.registry import Plugins


@dataclass(frozen=True)
class Proposal:
    """Settings for rows that nobody has looked at.

    Attributes:
        lines: what was found, for people.
    """

    config: RunConfig
    lines: list[str]


def propose(
    config: RunConfig, plugins: Plugins, template: str | None = None, gpu: str | None = None
) -> Proposal:
    """The columns of `data.train`, a template for its rows and a batch that fits.

    Args:
        config: `data.columns` stays where it has any.
        template: by default reasoning where the rows have some, else alpaca.
        gpu: see `plan`.

    Raises:
        FasttuneError: the rows cannot be read, or need a mapping that cannot be guessed.
    """
    assert config.data.train is not None, "there are rows"
    names = column_names(islice(reader(config.data.train, "train"), LOOKAHEAD))
    columns = config.data.columns or propose_columns(names)
    lines = [f"columns: {', '.join(names)}"]
    lines += [f"{ours} is taken from {theirs}" for ours, theirs in columns.items()]
    if template is None:
        start = load(config.data.train, columns=columns, limit=LOOKAHEAD)
        template = default_template(start.rows)
    data = replace(config.data, train=absolute(config.data.train), columns=columns)
    config = replace(config, template=template, data=data)
    with muted("fasttune.encoding"):
        made = plan(prepare(config, plugins), gpu)
    lines.append(made.line())
    if not made.fits:
        if not made.suggestion:
            made.require_fit()
        lines.append(f"with {' '.join(made.suggestion)} it fits")
        config = load_config(None, made.suggestion, base=config)
    return Proposal(config, lines)
