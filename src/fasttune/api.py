"""The verbs of fasttune, for Python and for the command line.

    config = fasttune.load_config("configs/demo.yaml", ["train.max_steps=180"])
    job = fasttune.prepare(config)
    run = fasttune.train(job)
    fasttune.load(run).answer("Which day is June 3, 2031?").response

Each verb imports what it needs when it is called: torch comes with the first that computes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fasttune import config as settings
from fasttune.config import ModelConfig, Override, RunConfig
from fasttune.errors import FasttuneError
from fasttune.logs import muted

if TYPE_CHECKING:
    from fasttune.comparison.result import Comparison
    from fasttune.data.rows import Rows
    from fasttune.exports.verify import Exported
    from fasttune.formats.template import Template
    from fasttune.generation.generator import Generator
    from fasttune.inspection.preview import Preview
    from fasttune.job import Job
    from fasttune.planning.forecast import Forecast
    from fasttune.plugins.registry import Plugins
    from fasttune.records import TemplateFacts
    from fasttune.runs import Run
    from fasttune.serving.serve import Server

log = logging.getLogger(__name__)


def load_config(
    path: str | Path | None = None, overrides: Sequence[str | Override | tuple[str, Any]] = ()
) -> RunConfig:
    """Defaults, then the YAML file, then the overrides: later wins.

    Args:
        overrides: "KEY=VALUE" as on the command line, or (key, value).

    Raises:
        FasttuneError: the file cannot be read, or a key or value is not known.
    """
    return settings.load_config(
        Path(path) if path is not None else None,
        [settings.parse_override(o) if isinstance(o, str) else o for o in overrides],
    )


def load_plugins(
    folder: Path | None = None,
    config: Path | None = None,
    *,
    files: Sequence[Path] = (),
) -> Plugins:
    """The installed plugins, and those of files and folders; one that fails is logged and left out.

    Args:
        config: YAML formats in formats/ beside it are found, too.
        files: plugin files, by their paths.

    Raises:
        FasttuneError: see `plugins.discovery.load_plugins`.
    """
    from fasttune.plugins import discovery

    loaded = discovery.load_plugins(folder, config, files)
    loaded.provided()  # asks every plugin for what it has, which may add problems
    for problem in loaded.problems:
        log.warning(
            "warning: plugin %s is not loaded: %s\n  %s", problem.name, problem.error, problem.path
        )
    return loaded


def prepare(
    config: RunConfig | None = None,
    plugins: Plugins | None = None,
    kept: tuple[Template, TemplateFacts] | None = None,
) -> Job:
    """The template and the checked and divided rows of a run to be; no model is loaded.

    Args:
        kept: the template of a run that goes on; see `Run.kept_template`.

    Raises:
        FasttuneError: for whatever is wrong with template, model name or data.
    """
    from fasttune import job

    return job.prepare(config or RunConfig(), plugins or load_plugins(), kept)


def preview(job: Job, row: int = 1) -> Preview:
    """What the model sees of a row to train on: its tokens by section, learned or given.

    Args:
        row: its number, from 1.

    Raises:
        FasttuneError: there is no such row, or it cannot be encoded.
    """
    from fasttune.inspection import preview
    from fasttune.models.tokenizer import load_tokenizer

    if not 1 <= row <= len(job.train):
        raise FasttuneError(f"there is no row {row}", job.source, f"rows are 1 to {len(job.train)}")
    return preview.preview(
        job.template,
        job.train[row - 1],
        load_tokenizer(job.model, job.template.end),
        number=row,
        model=job.model,
        max_length=job.config.model.max_length,
    )


def plan(job: Job | RunConfig, gpu: str | None = None) -> Forecast:
    """Memory, arithmetic and least time of a run, and whether it fits.

    Args:
        job: its rows are counted in tokens; of a config alone every row is taken to have
            `model.max_length`.
        gpu: a name as t4, or a memory as 16GB; by default this machine.

    Raises:
        FasttuneError: there is no such GPU, or the model's shape is not known.
    """
    from fasttune import machine
    from fasttune.models.demo import DEMO_MODEL
    from fasttune.models.tokenizer import CUDA_DEFAULT
    from fasttune.planning.devices import find_device, with_figures
    from fasttune.planning.forecast import forecast
    from fasttune.planning.shape import read_shape

    config = job if isinstance(job, RunConfig) else job.config
    device = find_device(gpu) if gpu is not None else with_figures(machine.this_device())
    name = config.model.name or (CUDA_DEFAULT if device.kind == "cuda" else DEMO_MODEL)
    shape = read_shape(name)
    lengths = None if isinstance(job, RunConfig) else _lengths(job, name)
    return forecast(config, shape, device, lengths)


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
    from itertools import islice

    from fasttune.data.check import column_names
    from fasttune.data.columns import propose_columns
    from fasttune.data.load import LOOKAHEAD, load
    from fasttune.data.sources import reader
    from fasttune.files import absolute
    from fasttune.inspection.survey import default_template

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
        changes = [settings.parse_override(text) for text in made.suggestion]
        lines.append(f"with {' '.join(made.suggestion)} it fits")
        config = settings.load_config(None, changes, base=config)
    return Proposal(config, lines)


def _lengths(job: Job, model: str) -> list[int] | None:
    """Tokens of the rows to train on; None where the model's tokenizer cannot be had here."""
    from fasttune.encoding.cache import encode_rows
    from fasttune.models.demo import DEMO_MODEL
    from fasttune.models.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(job.model if model == DEMO_MODEL else model, job.template.end)
    except FasttuneError as error:
        why = error.where or error.message
        log.info("rows not counted, taken as model.max_length tokens: %s", why)
        return None
    return encode_rows(job.template, job.train, tokenizer, job.config, "training").lengths


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
    from fasttune.models.tokenizer import require_model
    from fasttune.runs import Run

    resumed = job if isinstance(job, Run) else None
    chosen = _interrupted(job, plugins or load_plugins(), force) if isinstance(job, Run) else job
    require_model(chosen.model)
    from fasttune.training import train as training

    return training.train(chosen, resumed)


def _interrupted(run: Run, plugins: Plugins, force: bool) -> Job:
    """The job that a run began with."""
    config = run.check_resumable(force)
    job = prepare(config, plugins, run.kept_template(plugins, force))
    run.check_data(job.train, job.eval, force)
    return job


def open_run(name: str = "last", parent: str | Path | None = None) -> Run:
    """A run by its folder, by its name below `parent`, or "last" for the newest.

    Args:
        parent: by default runs/; "last" is then the newest run wherever this person wrote it.

    Raises:
        FasttuneError: there is no such run.
    """
    from fasttune.runs import find_run

    return find_run(name, Path(parent) if parent is not None else None)


@dataclass(frozen=True)
class Source:
    """What will answer: a run, or a base model under a template. Nothing is loaded yet.

    Attributes:
        template: with the system text that was asked for, or the run's own.
        adapter: None for a base model.
        run: None for a base model.
    """

    model: ModelConfig
    template: Template
    adapter: Path | None
    plugins: Plugins
    run: Run | None = None

    def load(self) -> Generator:
        """Load the model.

        Raises:
            FasttuneError: it cannot be loaded.
        """
        from fasttune.generation.generator import Generator

        return Generator.load(self.model, self.template, self.adapter)

    def read(self, file: str | Path, columns: Mapping[str, str], labelled: bool = False) -> Rows:
        """The rows of a file to answer; only what a prompt needs has to be there.

        Args:
            labelled: the reference response has to be there, too.

        Raises:
            FasttuneError: it cannot be read, or holds a row that cannot be used.
        """
        from fasttune.data.load import load

        _, response = self.template.response
        unneeded = {*self.template.targets.values()} - ({response} if labelled else set())
        needed = [column for column in self.template.required if column not in unneeded]
        take = self.run.config.data.turns if self.run else "all"
        loaded = load(str(file), self.template, columns, required=needed, take=take)
        loaded.require_clean(skip_bad_rows=False)
        return loaded.rows


def find(
    name: str | Run,
    template: str | None = None,
    system: str | None = None,
    plugins: Plugins | None = None,
    force: bool = False,
) -> Source:
    """What a name stands for: a run (folder, name or "last"), or a base model (folder or Hub name).

    Args:
        template: for a base model, by default reasoning; a run has its own.
        force: use the loaded template if it differs from the run's.

    Raises:
        FasttuneError: there is no such run or template, the run has no adapter, or only the Hub has
            the model and cannot be reached.
    """
    from fasttune.models.tokenizer import require_model
    from fasttune.runs import Run, find_run, is_run

    plugins = plugins or load_plugins()
    if isinstance(name, str) and not is_run(name):
        require_model(name)
        chosen = plugins.template(template or "reasoning").with_system(system)
        return Source(ModelConfig(name=name), chosen, None, plugins)
    run = name if isinstance(name, Run) else find_run(name)
    trained = run.manifest["template"]["name"]
    if template not in (None, trained, run.config.template):
        raise FasttuneError(
            f"the run was trained with the template '{trained}'",
            f"--template {template}",
            "leave out --template",
        )
    own = run.template(plugins, force)
    run.check_adapter()
    require_model(str(run.adapter))
    if run.model_config.name:
        require_model(run.model_config.name)
    return Source(run.model_config, own.with_system(system), run.adapter, plugins, run)


def load(
    name: str | Run,
    template: str | None = None,
    system: str | None = None,
    plugins: Plugins | None = None,
    force: bool = False,
) -> Generator:
    """A model that answers in a format: a run's, or a base model's under a template; see `find`.

    Raises:
        FasttuneError: as `find`, or the model cannot be loaded.
    """
    return find(name, template, system, plugins, force).load()


def export(
    run: Run | str,
    to: str = "merged",
    *,
    output: str | Path | None = None,
    verify: bool = True,
    force: bool = False,
    rows: int = 8,
    push: str | None = None,
    public: bool = False,
    plugins: Plugins | None = None,
    **options: str,
) -> Exported:
    """Export a run for other programs, and hold the export against the run.

    Args:
        to: the form; "merged", "adapter", "gguf", "ollama" or a plugin's.
        output: the folder to make; by default exports/FORM in the run folder.
        force: replace an earlier export.
        rows: held-out rows to verify with.
        push: owner/name of a repository of the Hub to upload the export to; one that is there, and
            of this run, is not made again. An export that is not verified stays here.
        public: whether that may be one that everybody can read.
        options: of the form, as quant="q8_0".

    Raises:
        FasttuneError: see `exports.export.export`.
    """
    from fasttune.exports import export as exports
    from fasttune.exports import push as pushing

    found = open_run(run) if isinstance(run, str) else run
    target = Path(output) if output is not None else None
    if push is not None:
        if not verify:
            raise FasttuneError(
                "only a verified export is pushed", f"--push {push}", "leave out --no-verify"
            )
        pushing.require_repository(push)
    done = exports.standing(found, to, options, target) if push and not force else None
    if done is None:
        done = exports.export(
            found,
            to,
            plugins or load_plugins(),
            target=target,
            options=options,
            verify=verify,
            force=force,
            rows=rows,
        )
    if push is None or done.failures:
        return done
    return replace(done, pushed=pushing.push(done, found, push, public))


def compare(
    of: Sequence[str | Run],
    config: RunConfig | None = None,
    *,
    seeds: Sequence[int] | None = None,
    budget: Literal["steps", "tokens"] = "steps",
    without: Literal["eos"] | None = None,
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
    from fasttune.comparison.finished import plan_runs
    from fasttune.comparison.plan import Measuring, plan_templates
    from fasttune.runs import Run

    plugins = plugins or load_plugins()
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
    from fasttune.comparison.work import run_comparison

    return run_comparison(made, by)


def evaluate(
    name: str | Run,
    data: str | Path,
    *,
    template: str | None = None,
    system: str | None = None,
    columns: Mapping[str, str] | None = None,
    include_base: bool = False,
    rows: int = 0,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    by: Sequence[str] = (),
    output: str | Path | None = None,
    plugins: Plugins | None = None,
    force: bool = False,
) -> Comparison:
    """Every metric, with its interval, on a file whose rows have their reference response.

    Measured as `compare` measures its held-out rows; what the folder holds already is not computed
    again.

    Args:
        name: a run, or a base model; see `find`.
        data: a file, a folder or a Hub name.
        columns: our column -> theirs.
        include_base: measure a run's untuned model as well.
        rows: to answer, at equal distances; 0 takes all.
        by: columns of the rows; figures are taken for each of their values, too.
        output: the folder; by default below evaluations/, named after what is measured.
        force: use the loaded template if it differs from the run's.

    Raises:
        FasttuneError: as `find`, or the file cannot be read or holds a row that cannot be used.
    """
    plugins = plugins or load_plugins()
    source = find(name, template, system, plugins, force)
    found = source.read(data, columns or {}, labelled=True)
    from fasttune.comparison.evaluation import plan_evaluation
    from fasttune.comparison.plan import Measuring

    measuring = Measuring(rows, max_new_tokens, batch_size, include_base or source.run is None)
    folder = Path(output) if output is not None else None
    made = plan_evaluation(
        source.run or source.model, source.template, str(data), found, measuring,
        source.plugins, folder,
    )  # fmt: skip
    from fasttune.comparison.work import run_comparison

    return run_comparison(made, by)


def serve(
    run: Run | str,
    engine: str = "transformers",
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    plugins: Plugins | None = None,
) -> AbstractContextManager[Server]:
    """A run behind an OpenAI-compatible server, as a context that ends it.

    Args:
        engine: "transformers", "llamacpp" or "vllm".
        port: 0 takes a free one.

    Raises:
        FasttuneError: see `serving.serve.serve`.
    """
    from fasttune.serving import serve as serving

    found = open_run(run) if isinstance(run, str) else run
    return serving.serve(found, plugins or load_plugins(), engine, host, port)
