"""Tasks of EleutherAI's lm-evaluation-harness, on a model that is prompted in its format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from fasttune.comparison.bootstrap import LEVEL, Interval
from fasttune.errors import FasttuneError, reason
from fasttune.exports.chat_template import chat_template_for
from fasttune.generation.generator import Generator


@dataclass(frozen=True)
class TaskFigure:
    """A metric of a task, as the harness reports it."""

    task: str
    metric: str  # its name and its filter, as "exact_match, strict-match"
    interval: Interval  # by the harness's standard error; bounds are NaN where it gives none
    rows: int  # of the task that were asked


def require_harness() -> None:
    """Refuse to begin without lm-eval."""
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise FasttuneError("lm-eval is not installed", "--tasks", "pip install lm-eval")


def run_tasks(
    generator: Generator, tasks: Sequence[str], rows: int = 0, batch_size: int = 8
) -> list[TaskFigure]:
    """Run tasks of the harness on the model, prompted through the chat template of an export.

    A format of one turn gets the examples of a task in the same message as the question.

    Args:
        tasks: names the harness knows, or paths of its task files.
        rows: of each task, from the start; 0 takes all.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    tokenizer = generator.tokenizer
    own = tokenizer.chat_template
    try:
        names, manager = _find_tasks(tasks)
        tokenizer.chat_template = chat_template_for(generator.template, tokenizer)
        with generator.choices.autocasting(generator.model.device.type):
            model = HFLM(
                pretrained=generator.model,
                backend="causal",
                tokenizer=tokenizer,
                batch_size=batch_size,
            )
            report = simple_evaluate(
                model,
                tasks=names,
                limit=rows or None,
                apply_chat_template=True,
                fewshot_as_multiturn=False,
                log_samples=False,
                task_manager=manager,
            )
    except (OSError, ValueError, LookupError, TypeError, ConnectionError) as error:
        raise FasttuneError(
            f"lm-eval fails: {reason(error)}",
            f"--tasks {','.join(tasks)}",
            "offline a task needs its rows in the cache, or in a local file that its task file "
            "names; --traceback shows where it failed",
        ) from error
    finally:
        tokenizer.chat_template = own
    return [one for name, values in report["results"].items() for one in _figures(name, values)]


def _find_tasks(tasks: Sequence[str]) -> tuple[list[str], Any]:
    """Return the names of the tasks, and the harness's manager, which knows them."""
    from lm_eval.tasks import TaskManager

    files = {word: Path(word) for word in tasks if Path(word).is_file()}
    names = [_name(files[word]) if word in files else word for word in tasks]
    folders = list(dict.fromkeys(str(file.parent) for file in files.values()))
    manager = TaskManager(include_path=folders or None, include_defaults=len(files) < len(tasks))
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise FasttuneError(
            f"lm-eval knows no task '{unknown[0]}'",
            f"--tasks {','.join(tasks)}",
            "lm-eval ls tasks shows what it knows; a task file is given by its path",
        )
    return names, manager


def _name(file: Path) -> str:
    """Return the name in a task file, whose YAML has tags that only the harness can read."""
    text = file.read_text(encoding="utf-8")
    match = re.search(r"^task:\s*[\"']?([\w.-]+)", text, re.MULTILINE)
    if match is None:
        raise FasttuneError("the task file names no task", str(file), "write a line: task: NAME")
    return match[1]


def _figures(task: str, values: Mapping[str, Any]) -> Iterator[TaskFigure]:
    """Yield the figures among what the harness reports of a task: "metric,filter" -> value."""
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2)
    for key, value in values.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{kept}")
        error = error if isinstance(error, int | float) else float("nan")
        name = metric if kept == "none" else f"{metric}, {kept}"
        bounds = Interval(float(value), value - reach * error, value + reach * error)
        yield TaskFigure(task, name, bounds, int(values.get("sample_len", 0)))
