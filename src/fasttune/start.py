"""Training, from a job or from a run that was interrupted."""

from __future__ import annotations

from collections.abc import Sequence

from fasttune.config import Override, RunConfig
from fasttune.errors import FasttuneError
from fasttune.job import Job, check_packages
from fasttune.models.base import require_same_base
from fasttune.models.tokenizer import require_model, resolve_model
from fasttune.models.unsloth import import_unsloth
from fasttune.planning.schedule import steps
from fasttune.plugins.discovery import installed_plugins
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run
from fasttune.runs.resume import require_resumable


def train(
    job: Job | Run,
    plugins: Plugins | None = None,
    force: bool = False,
    longer: Sequence[str | Override] = (),
) -> Run:
    """Train a job, resume a run that was interrupted, or continue one that is done.

    Args:
        plugins: for a run; a job has its own.
        force: resume with an edited config.yaml, and with the loaded template if it differs.
        longer: new values of train.epochs or train.max_steps for a run, as "train.epochs=3". It
            continues with the learning rate that a run of that length has at the step.

    Returns:
        the run; `run.manifest["status"]` is "done", or "interrupted" after a Ctrl-C or SIGTERM.

    Raises:
        FasttuneError: the run does not fit this machine, the model cannot be loaded, or the run
            cannot be resumed.
    """
    resumed = job if isinstance(job, Run) else None
    if isinstance(job, Run):
        job = _begun(job, plugins or installed_plugins(), force, longer)
    require_model(job.model)
    import_unsloth()  # before transformers, TRL and PEFT
    from fasttune.training.train import train as fit

    return fit(job, resumed)


def _begun(run: Run, plugins: Plugins, force: bool, longer: Sequence[str | Override]) -> Job:
    """The job that a run began with, from what the run keeps, `longer` if it shall be."""
    config, manifest = require_resumable(run, force, longer), run.manifest
    check_packages(config)
    if longer:
        _require_longer(run, config)
    require_same_base(run, force)
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


def _require_longer(run: Run, config: RunConfig) -> None:
    """Refuse to continue a run that has taken all steps, or that stopped early."""
    manifest = run.manifest
    rows, together = manifest["data"]["train_rows"], manifest.get("processes", 1)
    planned, wanted = (steps(rows, each, together) for each in (run.config, config))
    taken = manifest.get("steps", 0)
    if wanted <= taken:
        raise FasttuneError(
            f"the run has taken {taken} steps, and {wanted} are wanted",
            f"{run.folder}: train.epochs={config.train.epochs}, "
            f"train.max_steps={config.train.max_steps}",
            f"give more, such as train.max_steps={2 * taken}",
        )
    if manifest["status"] == "done" and taken < planned:
        raise FasttuneError(
            f"the run stopped early, after {taken} of {planned} steps",
            f"{run.folder}: train.early_stopping={config.train.early_stopping}",
            "start a new run with a higher train.early_stopping, or without it",
        )
