"""The server programs that a run can be handed to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Engine:
    """A server program.

    Attributes:
        form: the export that it takes.
        modules: what must be installed, and `install` how.
        command: a module that serves with uvicorn, and its options; see `serve` for the names in
            braces.
        tokenizes: whether it tells the ids of a prompt, and not only their number.
        variables: whether requests may give the chat template variables.
        greedy: what a request must say for the run's own, greedy answer.
    """

    name: str
    form: str
    modules: tuple[str, ...]
    install: str
    command: str
    tokenizes: bool = False
    variables: bool = True
    greedy: tuple[tuple[str, float], ...] = (("temperature", 0),)


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "transformers",
            "merged",
            ("fastapi", "uvicorn", "openai"),
            "pip install fastapi uvicorn openai",
            "transformers.cli.transformers serve {name}",
        ),
        Engine(
            "llamacpp",
            "gguf",
            ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context"),
            "pip install gguf 'llama-cpp-python[server]' (this compiles llama.cpp)",
            "llama_cpp.server --model {gguf} --model_alias {name} --n_ctx {context}",
            variables=False,
            # It penalises repetition unless a request says 1.
            greedy=(("temperature", 0), ("repeat_penalty", 1)),
        ),
        Engine(
            "vllm",
            "merged",
            ("vllm",),
            "pip install vllm (it wants a GPU)",
            # Its own port is not listened on.
            "vllm.entrypoints.openai.api_server --model {folder} --served-model-name {name} "
            "--host 127.0.0.1 --port 0",
            tokenizes=True,
        ),
    )
}
