"""Start a server on a run's export, compare its prompts with the run's, and end it again."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fasttune.encoding.encode import encode_prompt
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.exports.chat_template import chat_template_for
from fasttune.exports.export import default_folder, export, standing
from fasttune.formats.examples import EXAMPLES, examples
from fasttune.models.whole import read_object
from fasttune.plugins.discovery import installed_plugins
from fasttune.runs import Run, find_trained
from fasttune.serving.engines import ENGINES, Engine
from fasttune.serving.gate import Facts

if TYPE_CHECKING:
    from fasttune.exports.job import RunExport
    from fasttune.plugins.registry import Plugins

log = logging.getLogger(__name__)

START = 900
"""Seconds in which a server has to have its model loaded."""
GRACE = 10
"""Seconds in which a server ends itself before it is killed."""
SHOWN_LINES = 8
"""Of what a server wrote before it ended, for the error."""

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        model: the name that requests give.
        root: its address, as http://127.0.0.1:8000.
        process: the leader of a process group of its own.
        log: the file with what it prints, unless fasttune shows it.
        example: messages and variables of a question.
        proof: how its prompts compare with the run's.
    """

    engine: Engine
    model: str
    root: str
    process: subprocess.Popen[bytes]
    log: Path
    example: Mapping[str, Any]
    proof: str = ""

    @property
    def url(self) -> str:
        """The API, as http://127.0.0.1:8000/v1."""
        return f"{self.root}/v1"

    @property
    def curl(self) -> str:
        """A command that asks it something."""
        body = {"model": self.model, **self.example, **dict(self.engine.greedy)}
        return shlex.join(
            [
                *("curl", f"{self.url}/chat/completions"),
                *("-H", "Content-Type: application/json"),
                *("-d", json.dumps(body, ensure_ascii=False)),
            ]
        )

    def ask(self, path: str, body: Mapping[str, Any] | None = None, seconds: float = 300) -> Any:
        """Return the JSON that it answers a request with."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.root}{path}", data, headers)
        try:
            with _OPENER.open(request, timeout=seconds) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            raise FasttuneError(
                f"{self.engine.name} answers with status {error.code}",
                error.read().decode(errors="replace")[:500],
                "--verbose shows more",
            ) from error

    def prompt_ids(
        self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, str]
    ) -> list[int] | int:
        """The ids of a prompt, or their number if the engine tells no more."""
        request: dict[str, Any] = {"model": self.model, "messages": messages}
        if variables:
            request["chat_template_kwargs"] = variables
        if self.engine.tokenizes:
            return list(self.ask("/tokenize", request | {"add_generation_prompt": True})["tokens"])
        answer = self.ask("/v1/chat/completions", request | {"max_tokens": 1, "temperature": 0})
        return int(answer["usage"]["prompt_tokens"])

    def wait(self) -> None:
        """Wait for an interrupt, or for an error if the server ends by itself."""
        self.process.wait()
        raise self._ended()

    def wait_until_ready(self) -> None:
        """Return when the model is loaded."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise self._ended()
            with suppress(OSError, ValueError, FasttuneError):
                self.ask("/health", seconds=5)
                return
            time.sleep(0.2)
        what = f"{self.engine.name} did not answer within {START} seconds"
        raise FasttuneError(what, self.root, "give --verbose to watch it")

    def _ended(self) -> FasttuneError:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return FasttuneError(
            f"{self.engine.name} ended by itself, with status {self.process.returncode}",
            "\n".join(lines[-SHOWN_LINES:]) or "it printed nothing",
            "--verbose shows more",
        )


@contextmanager
def serve(
    run: Run | str,
    engine: str = "transformers",
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    plugins: Plugins | None = None,
) -> Iterator[Server]:
    """A server of the run's model; it is ended, with all its processes, when the context is.

    Args:
        engine: "transformers", "llamacpp" or "vllm".
        port: 0 takes a free one.

    Raises:
        FasttuneError: the engine is not known or not installed, the port is taken, the run cannot
            be exported or its export is not verified, the server does not start, or it makes other
            prompts than the run.
    """
    if engine not in ENGINES:
        hint = did_you_mean(engine, [*ENGINES])
        raise FasttuneError(f"there is no engine '{engine}'", "--engine", hint)
    chosen = ENGINES[engine]
    for module in chosen.modules:
        if importlib.util.find_spec(module) is None:
            what = f"the engine {engine} is not installed: there is no module {module}"
            raise FasttuneError(what, f"--engine {engine}", chosen.install)
    run = find_trained(run) if isinstance(run, str) else run
    plugins = plugins or installed_plugins()
    with _listen(host, port) as listening:
        folder = exported(run, chosen.form, plugins)
        with _started(run, chosen, plugins, folder, host, listening) as server:
            yield server


@contextmanager
def _started(
    run: Run, engine: Engine, plugins: Plugins, folder: Path, host: str, listening: socket.socket
) -> Iterator[Server]:
    """The server on a socket, which it takes over."""
    from fasttune.exports.job import RunExport

    job = RunExport(run, run.template(plugins), run.folder, {})
    context = max(2048, run.config.model.max_length + 256)  # tokens, with the answer's
    port = listening.getsockname()[1]
    values = {
        "name": run.name,
        "context": context,
        "socket": listening.fileno(),
        "folder": folder.absolute(),
        "gguf": next(iter(sorted(folder.absolute().glob("*.gguf"))), ""),
    }
    row = job.example_row()
    chat = job.chat_format()
    example: dict[str, Any] = {"messages": chat.messages(row)}
    if engine.variables and (variables := chat.kwargs(row)):
        example["chat_template_kwargs"] = variables
    with tempfile.TemporaryDirectory(prefix="fasttune-serve-") as here:
        written, facts = Path(here) / "log", Path(here) / "facts.json"
        facts.write_bytes(msgspec.json.encode(_facts(job, engine, folder, host, context)))
        (Path(here) / run.name).symlink_to(folder.absolute(), target_is_directory=True)
        shown = log.isEnabledFor(logging.DEBUG)
        words = [word.format(**values) for word in engine.command.split()]
        behind = ["fasttune.serving.behind", str(facts), str(listening.fileno())]
        with written.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *behind, *words],
                cwd=here,
                stdin=subprocess.DEVNULL,
                stdout=None if shown else out,
                stderr=None if shown else subprocess.STDOUT,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},  # the model is here
                pass_fds=[listening.fileno()],
                start_new_session=True,  # Ctrl-C is for this process to pass on
            )
        listening.close()
        root = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server = Server(engine, run.name, root, process, written, example)
        try:
            log.info("starting %s", engine.name)
            server.wait_until_ready()
            yield replace(server, proof=_verify(job, server))
        finally:
            end(process)


def _facts(job: RunExport, engine: Engine, folder: Path, host: str, context: int) -> Facts:
    """What the gate before the engine has to know."""
    try:
        anywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        anywhere = False
    if (folder / "config.json").is_file():
        context = read_object(folder / "config.json").get("max_position_embeddings", context)
    tokenizer = job.tokenizer()
    return Facts(
        model=job.name,
        hosts=None if anywhere else [host.lower(), "localhost", "127.0.0.1", "::1"],
        template=None if job.template.computed else job.template.declaration,
        eos=str(tokenizer.eos_token),
        tokenizer=str(job.run.adapter.absolute()),
        chat_template=chat_template_for(job.template, tokenizer),
        longest=context,
        paths=["/tokenize"] if engine.tokenizes else [],
    )


def exported(run: Run, form: str, plugins: Plugins) -> Path:
    """Return the run's verified export of a form, created now unless one of its adapter exists."""
    done = standing(run, form)
    if done is None:
        log.info("exporting as %s", form)
        there = default_folder(run, form).exists()
        done = export(run, form, force=there, plugins=plugins)
    folder = done.folder
    if done.failures:
        raise FasttuneError(
            f"the export is not verified: {done.failures[0]}",
            str(folder),
            "install what is missing and run `fasttune export RUN --force`, or add --no-verify",
        )
    if (folder / "config.json").is_file() and not (folder / "chat_template.jinja").is_file():
        raise FasttuneError(
            "the export has no chat template, so a server could not make the run's prompts",
            str(folder),
            "export it again and read its note: a computed format has no chat template",
        )
    return folder


def _listen(host: str, port: int) -> socket.socket:
    """Bind a socket now, so that no other program can take the port while the model loads."""
    where = f"--host {host!r} --port {port}"
    if not host.strip():
        hint = "give an address, for example 127.0.0.1, or 0.0.0.0 for every network"
        raise FasttuneError("no address to listen on", where, hint)
    listening = None
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        ip = ipaddress.ip_address(address[0])
        if ip.is_multicast or str(ip) == "255.255.255.255":
            raise OSError("it is not an address of this machine")
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except (OSError, ValueError) as error:
        if listening is not None:
            listening.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        raise FasttuneError(
            f"cannot listen there: {getattr(error, 'strerror', None) or error}",
            where,
            "choose another port, or 0 for any free one"
            if taken
            else "give an address of this machine, for example 127.0.0.1",
        ) from error
    return listening


def _verify(job: RunExport, server: Server) -> str:
    """Send rows of every kind that the format tells apart, and compare the prompts with the run's:
    their ids, or their number if the engine tells no more."""
    engine = server.engine
    chat, tokenizer = job.chat_format(), job.tokenizer()
    compared, unit = 0, "" if engine.tokenizes else " tokens"
    targets = [*job.template.targets.values()]
    for row in (each.without(targets) for each in examples(job.template)[: len(EXAMPLES)]):
        variables = chat.kwargs(row)
        if variables and not engine.variables:
            continue
        ids = encode_prompt(job.template, row, tokenizer)
        expected = ids if engine.tokenizes else len(ids)
        received = server.prompt_ids(chat.messages(row), variables)
        if received != expected:
            raise FasttuneError(
                f"{engine.name} makes other prompts than the run",
                f"{row['instruction']!r}: {received}, the run has {expected}{unit}",
                "another release of it may do; the export itself was verified",
            )
        compared += 1
    if engine.tokenizes:
        return f"{compared} test prompts have the token ids of the run"
    return (
        f"{compared} test prompts have the same number of tokens as in the run "
        "(this server does not report token ids)"
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group: asked first, then killed."""
    try:
        _signal(process, signal.SIGTERM)
        process.wait(GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        _signal(process, signal.SIGKILL)  # and whatever it left behind
        process.wait()
        gone = time.monotonic() + 1  # a killed process takes a moment to end
        while _signal(process, 0) and time.monotonic() < gone:
            time.sleep(0.02)


def _signal(process: subprocess.Popen[bytes], number: int) -> bool:
    """Whether there was a process in its group to get the signal."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
        return True
    return False
