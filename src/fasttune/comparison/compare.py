"""Which prompt format is better, on the same rows and the same budget?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune.comparison.finished import plan_runs
from fasttune.comparison.plan import Budget, Measuring, Without, plan_templates
from fasttune.config import RunConfig
from fasttune.errors import FasttuneError
from fasttune.logs import muted
from fasttune.models.unsloth import import_unsloth
from fasttune.plugins.discovery import installed_plugins
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run

if TYPE_CHECKING:
    from fasttune.comparison.result import Comparison


def compare(
    of: Sequence[str | Run],
    config: RunConfig | None = None,
    *,
    seeds: Sequence[int] | None = None,
    budget: Budget = "steps",
    without: Without | None = None,
    sweep: tuple[str, Sequence[Any]] | None = None,
    include_base: bool = True,
    rows: int = 200,
    max_new_tokens: int = 160,
    batch_size: int = 32,
    by: Sequence[str] = (),
    output: str | Path | None = None,
    plugins: Plugins | None = None,
) -> Comparison:
    """Which prompt format is better, on the same rows and the same budget?

    What the folder of the comparison holds already is not computed again.

    Args:
        of: templates to train, or finished runs.
        config: of the runs to be trained.
        seeds: to train each template with; by default the config's.
        budget: as many "steps" for every format, or as many "tokens".
        without: train each template a second time without a loss on "eos".
        sweep: a setting and its values, as ("train.learning_rate", [1e-4, 3e-4]): each template is
            trained with each of them.
        include_base: measure the untuned model under every format as well.
        rows: held-out rows to answer, at equal distances; 0 takes all.
        max_new_tokens: where an answer that does not stop is cut off.
        by: columns of the rows; figures and differences are taken for each of their values, too.
        output: the folder; by default below comparisons/, named after what is compared.

    Raises:
        FasttuneError: for whatever is wrong with templates, runs, settings or data.
        KeyboardInterrupt: a training was interrupted; the same call goes on with it.
    """
    plugins = plugins or installed_plugins()
    measuring = Measuring(rows, max_new_tokens, batch_size, include_base)
    folder = Path(output) if output is not None else None
    runs = [each for each in of if isinstance(each, Run)]
    names = [each for each in of if isinstance(each, str)]
    if runs and names:
        raise FasttuneError("templates and runs are mixed", ", ".join(names), "give one kind")
    config = config or RunConfig()
    numbers = [config.seed] if seeds is None else seeds
    with muted("fasttune.encoding"):
        made = (
            plan_runs(runs, measuring, plugins, folder)
            if runs
            else plan_templates(
                config, names, numbers, budget, measuring, plugins, folder, without, sweep
            )
        )
    import_unsloth()  # before transformers, TRL and PEFT
    from fasttune.comparison.work import run_comparison

    return run_comparison(made, by)
