"""The servers that a run can be handed to, and how each tells what it made of a prompt."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune.errors import FasttuneError

Ask = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""(path, request) -> response, both as JSON."""
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Address:
    """Where a model is served.

    Attributes:
        name: the model's, as requests give it.
        context: tokens of the longest conversation, its answer included.
    """

    name: str
    host: str
    port: int
    context: int


@dataclass(frozen=True)
class Engine:
    """A server program.

    Attributes:
        form: the export that it takes.
        modules: what has to be installed, and `install` how.
        command: (export folder, address) -> the words that start it, in a folder where the export
            has the model's name.
        ready: the path that answers once the model is loaded.
        prompt: (ask, name, messages, variables) -> the ids of a prompt, or only their number, where
            the engine tells no more.
        variables: whether requests may give the chat template variables.
        greedy: what a request has to say for the run's own, greedy answer.
    """

    name: str
    form: str
    modules: tuple[str, ...]
    install: str
    command: Callable[[Path, Address], list[str]]
    ready: str
    prompt: Callable[[Ask, str, Messages, Mapping[str, str]], list[int] | int]
    variables: bool
    greedy: Mapping[str, float]

    def require(self) -> None:
        """Refuse an engine that is not installed."""
        missing = [name for name in self.modules if importlib.util.find_spec(name) is None]
        if missing:
            raise FasttuneError(
                f"the engine {self.name} is not installed: there is no module {missing[0]}",
                f"--engine {self.name}",
                self.install,
            )


def _transformers(folder: Path, at: Address) -> list[str]:
    server = "fasttune.serving.transformers_server"
    return [sys.executable, "-m", server, at.name, at.host, str(at.port)]


def _llamacpp(folder: Path, at: Address) -> list[str]:
    [file] = sorted(folder.glob("*.gguf"))[:1]
    return [
        *(sys.executable, "-m", "llama_cpp.server", "--model", str(file)),
        *("--model_alias", at.name, "--host", at.host, "--port", str(at.port)),
        *("--n_ctx", str(at.context)),
    ]


def _vllm(folder: Path, at: Address) -> list[str]:
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *("--served-model-name", at.name, "--host", at.host, "--port", str(at.port)),
    ]


def _counted(ask: Ask, name: str, messages: Messages, variables: Mapping[str, str]) -> int:
    """The number of a prompt's ids, as an answer of one token tells it."""
    given = {"chat_template_kwargs": variables} if variables else {}
    request = {"model": name, "messages": messages, "max_tokens": 1, "temperature": 0}
    return int(ask("/v1/chat/completions", request | given)["usage"]["prompt_tokens"])


def _tokenized(ask: Ask, name: str, messages: Messages, variables: Mapping[str, str]) -> list[int]:
    request = {"model": name, "messages": messages, "add_generation_prompt": True}
    found = ask("/tokenize", request | {"chat_template_kwargs": variables})
    return list(found["tokens"])


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "transformers", "merged", ("fastapi", "uvicorn", "openai"),
            "pip install 'fasttune[serve]'",
            _transformers, "/health", _counted, True, {"temperature": 0},
        ),
        Engine(
            "llamacpp", "gguf",
            ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context"),
            "pip install 'fasttune[gguf]' 'llama-cpp-python[server]' (this compiles llama.cpp)",
            # It penalises repetition where a request does not say 1.
            _llamacpp, "/v1/models", _counted, False, {"temperature": 0, "repeat_penalty": 1},
        ),
        Engine(
            "vllm", "merged", ("vllm",), "pip install vllm (it wants a GPU)",
            _vllm, "/health", _tokenized, True, {"temperature": 0},
        ),
    )
}  # fmt: skip
