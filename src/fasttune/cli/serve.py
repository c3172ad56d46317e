"""`fasttune serve`: a run behind an OpenAI-compatible server."""

from __future__ import annotations

from typing import Annotated

import typer

from fasttune.cli import options
from fasttune.cli.app import app, plugins, say
from fasttune.cli.options import number, option


@app.command()
def serve(
    context: typer.Context,
    run: options.Run,
    engine: Annotated[str, option("The server: transformers, llamacpp or vllm.")] = "transformers",
    host: Annotated[str, option("Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, number("Port to listen on; 0: any free one.", 0, 65535)] = 8000,
) -> None:
    """Serve a run with an OpenAI-compatible API, until Ctrl-C.

    fasttune exports the run first, unless an export exists, and compares the server's prompts with
    the run's.
    """
    from fasttune.serving.serve import serve as serve_run

    try:
        with serve_run(run, engine, host=host, port=port, plugins=plugins(context)) as server:
            print(f"{server.model} on {engine}: {server.proof}")
            print(f"base URL: {server.url}")
            print(server.curl, flush=True)
            say("Ctrl-C ends it")
            server.wait()
    except KeyboardInterrupt:
        say("stopped")
