"""What a plugin may provide. A plugin implements any of these functions, marked with
`@hookimpl`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from fasttune.formats.template import Template
    from fasttune.plugins.exporter import Exporter
    from fasttune.plugins.metric import Metric

hookspec = pluggy.HookspecMarker("fasttune")
hookimpl = pluggy.HookimplMarker("fasttune")


@hookspec
def register_templates() -> list[Template]:  # type: ignore[empty-body]
    """Prompt formats.

    Example:
        >>> from fasttune import Template, given, hookimpl, learn
        >>> plain = Template(
        ...     name="plain",
        ...     parts=[
        ...         given("instruction", "Question: {instruction}\\nAnswer:"),
        ...         learn("response", " {output}"),
        ...     ],
        ... )
        >>> @hookimpl
        ... def register_templates():
        ...     return [plain]
    """


@hookspec
def register_metrics() -> list[Metric]:  # type: ignore[empty-body]
    """Figures on generated answers: each measures one `Answer`.

    Example:
        >>> from fasttune import Metric, hookimpl
        >>> def words(answer):
        ...     return len(answer.response.split())
        >>> @hookimpl
        ... def register_metrics():
        ...     return [Metric("words", "mean words in a response", words)]
    """


@hookspec
def register_exporters() -> list[Exporter]:  # type: ignore[empty-body]
    """Forms in which a run can leave: each fills a folder, and opens it again to be verified.

    Example:
        >>> from fasttune import Exporter, hookimpl
        >>> class Half(Exporter):
        ...     name = "half"
        ...     description = "the merged model in fp16"
        ...     def write(self, job):
        ...         from safetensors.torch import load_file, save_file
        ...         job.write_merged(job.folder)
        ...         for file in job.folder.glob("*.safetensors"):
        ...             halves = {name: tensor.half() for name, tensor in load_file(file).items()}
        ...             save_file(halves, file, metadata={"format": "pt"})
        ...     def open(self, job):
        ...         return job.open_merged(job.folder)
        >>> @hookimpl
        ... def register_exporters():
        ...     return [Half()]
    """


@hookspec
def training_callbacks(run: Path) -> list[TrainerCallback]:  # type: ignore[empty-body]
    """Callbacks for transformers' Trainer; `run` is the run folder, where a callback may write.

    Example:
        >>> from fasttune import hookimpl
        >>> @hookimpl
        ... def training_callbacks(run):
        ...     from transformers import TrainerCallback
        ...     class Note(TrainerCallback):
        ...         def on_train_end(self, args, state, control, **kwargs):
        ...             (run / "note.txt").write_text(f"{state.global_step} steps")
        ...     return [Note()]
    """
