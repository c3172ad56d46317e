"""`fasttune serve`: a run behind an OpenAI-compatible server."""

from __future__ import annotations

from typing import Annotated

import typer

from fasttune.cli.app import app, plugins, say


@app.command()
def serve(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="A run: its folder, its name or 'last'.")],
    engine: Annotated[
        str, typer.Option(help="The server: transformers, llamacpp or vllm.")
    ] = "transformers",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any that is free.")
    ] = 8000,
) -> None:
    """Serve a run through an engine that speaks OpenAI's API, until Ctrl-C.

    The run is exported first, unless it was. The prompts that the server makes are held against the
    run's.
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
