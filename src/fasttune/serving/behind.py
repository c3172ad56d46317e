"""Run a server program with a `Gate` before it, on a socket that is bound already."""

from __future__ import annotations

import runpy
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from fasttune.serving.gate import Facts, Gate


def main(facts_file: str, descriptor: str, module: str, *arguments: str) -> None:
    """Run a module that serves an application with uvicorn, until a signal ends it."""
    facts = msgspec.json.decode(Path(facts_file).read_bytes(), type=Facts)
    listening = socket.socket(fileno=int(descriptor))
    configure, serve = uvicorn.Config.__init__, uvicorn.Server.serve

    def configure_gate(self: uvicorn.Config, app: Any, *args: Any, **kwargs: Any) -> None:
        configure(self, Gate(app, facts), *args, **kwargs)

    async def serve_there(self: uvicorn.Server, sockets: Any = None) -> None:
        await serve(self, [listening])

    uvicorn.Config.__init__ = configure_gate  # type: ignore[method-assign]
    uvicorn.Server.serve = serve_there  # type: ignore[method-assign]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
