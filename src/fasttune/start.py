"""Training, from a job or from a run that was interrupted."""

from __future__ import annotations

from fasttune.job import Job, prepare
from fasttune.models.tokenizer import require_model
from fasttune.models.unsloth import import_unsloth
from fasttune.plugins.discovery import installed_plugins
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run
from fasttune.runs.resume import require_resumable, require_same_rows


def train(job: Job | Run, plugins: Plugins | None = None, force: bool = False) -> Run:
    """Train a job, or go on with a run that was interrupted.

    Args:
        plugins: for a run to go on with; a job has its own.
        force: go on although the rows are others or config.yaml was edited, and with the loaded
            template if it differs from the run's.

    Returns:
        the run; `run.manifest["status"]` is "done", or "interrupted" after a Ctrl-C or SIGTERM.

    Raises:
        FasttuneError: the run does not fit this machine, the model cannot be loaded, or the run
            cannot be gone on with.
    """
    resumed = job if isinstance(job, Run) else None
    chosen = (
        _interrupted(job, plugins or installed_plugins(), force) if isinstance(job, Run) else job
    )
    require_model(chosen.model)
    import_unsloth()  # before transformers, TRL and PEFT
    from fasttune.training.train import train as fit

    return fit(chosen, resumed)


def _interrupted(run: Run, plugins: Plugins, force: bool) -> Job:
    """The job that a run began with."""
    config = require_resumable(run, force)
    job = prepare(config, plugins, run.kept_template(plugins, force))
    if not force:
        require_same_rows(run, job.train, job.eval)
    return job
