"""Training, from a job or from a run that was interrupted."""

from __future__ import annotations

from fasttune.job import Job, check_packages
from fasttune.models.tokenizer import require_model, resolve_model
from fasttune.models.unsloth import import_unsloth
from fasttune.plugins.discovery import installed_plugins
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run
from fasttune.runs.resume import require_resumable


def train(job: Job | Run, plugins: Plugins | None = None, force: bool = False) -> Run:
    """Train a job, or resume a run that was interrupted.

    Args:
        plugins: for a run; a job has its own.
        force: resume with an edited config.yaml, and with the loaded template if it differs.

    Returns:
        the run; `run.manifest["status"]` is "done", or "interrupted" after a Ctrl-C or SIGTERM.

    Raises:
        FasttuneError: the run does not fit this machine, the model cannot be loaded, or the run
            cannot be resumed.
    """
    resumed = job if isinstance(job, Run) else None
    if isinstance(job, Run):
        job = _interrupted(job, plugins or installed_plugins(), force)
    require_model(job.model)
    import_unsloth()  # before transformers, TRL and PEFT
    from fasttune.training.train import train as fit

    return fit(job, resumed)


def _interrupted(run: Run, plugins: Plugins, force: bool) -> Job:
    """The job that a run began with, from what the run keeps."""
    config, manifest = require_resumable(run, force), run.manifest
    check_packages(config)
    template, facts = run.kept_template(plugins, force)
    return Job(
        config=config,
        plugins=plugins,
        template=template.with_system(config.system),
        facts=facts,
        model=resolve_model(config.model.name),
        source=manifest["data"]["source"],
        train=run.training_rows(),
        eval=run.held_out(),
    )
