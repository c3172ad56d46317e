"""`fasttune serve`: the real command, asked by OpenAI's client, and ended."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fasttune
from fasttune.exports.verify import Exported
from fasttune.serving import serve as serving
from fasttune.serving.engines import ENGINES, Engine
from tests.conftest import cli, tiny_model
from tests.exports.conftest import EOS, build_byte_tokenizer, make_run, plugins  # noqa: F401

pytestmark = pytest.mark.slow

QUESTION = "How many days are in two weeks?"


@pytest.fixture(scope="module")
def base() -> Path:
    """A model that writes printable characters: half of one would be held back in a stream."""
    from safetensors.torch import load_file, save_file

    tokenizer = build_byte_tokenizer()
    ends = {"bos_token_id": EOS, "eos_token_id": EOS}
    folder = tiny_model("phi", tokenizer, vocab_size=EOS + 8, intermediate_size=640, **ends)
    weights = load_file(folder / "model.safetensors")
    printable = tokenizer.convert_tokens_to_ids([chr(code) for code in range(33, 127)])
    weights["lm_head.bias"][:] = -1e3
    weights["lm_head.bias"][printable] = 0.0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def of_group(group: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def children(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(each) for each in listed]


@pytest.fixture(scope="module")
def run(make_run):  # noqa: F811
    return make_run("served", template="reasoning")


@pytest.fixture(scope="module")
def served(run, plugins):  # noqa: F811
    """The command with everything it prints until it serves, on an export that is there."""
    openai = pytest.importorskip("openai", reason="pip install fastapi uvicorn openai")
    fasttune.export(run, plugins=plugins, rows=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "fasttune", "serve", str(run.folder), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        printed = [process.stdout.readline() for _ in range(3)]
        if not printed[2]:
            pytest.fail(process.stderr.read())
        url = printed[1].removeprefix("base URL: ").strip()
        yield process, printed, openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_a_client_gets_the_answer_of_the_run(run, served, plugins):  # noqa: F811
    import openai

    process, printed, client = served
    assert printed[0].startswith(f"{run.name} on transformers: 24 test prompts have the same")
    assert f'\'{{"model": "{run.name}"' in printed[2] and printed[2].startswith("curl http://")
    asked = {
        "model": run.name, "max_tokens": 12, "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION}],
    }  # fmt: skip
    generator = fasttune.load(run, plugins=plugins)
    expected = generator.answer(QUESTION, max_new_tokens=12)
    whole = client.chat.completions.create(**asked)
    said = whole.choices[0].message.content
    assert said == expected.text and whole.usage.completion_tokens == expected.tokens == 12
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**asked, stream=True)
    ]
    assert "".join(pieces) == said and len(pieces) > 2

    done = subprocess.run(printed[2], shell=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"

    system = [{"role": "system", "content": "You answer."}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked | {"messages": system})
    assert refused.value.status_code == 400
    assert "messages must be" in str(refused.value)
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt' here"):
        client.chat.completions.create(**asked | {"model": "gpt"})
    assert [model.id for model in client.models.list()] == [run.name]

    [child] = children(process.pid)
    assert of_group(child)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and said.endswith("Ctrl-C ends it\nstopped\n")
    assert f"the export is there: {run.folder}" in said
    assert not of_group(child)


@pytest.fixture
def serves(monkeypatch, tmp_path):
    """Makes the engine "mine" of a script, which has its socket in `listening`."""

    def serve(script: str) -> None:
        code = f"{BEGIN}\n{script}"
        (tmp_path / "mine_server.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setitem(
            ENGINES, "mine", Engine("mine", "merged", (), "", "mine_server {socket}")
        )

    return serve


BEGIN = """
import sys, os, time, signal, socket, subprocess
listening = socket.socket(fileno=int(sys.argv[1]))
"""
ANSWERS = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *args): pass
server = HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket = listening
"""
STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
"""


@pytest.fixture
def standing(run, monkeypatch, tmp_path):
    """An export that is there, without being one."""
    monkeypatch.setattr(serving, "exported", lambda *args: tmp_path)
    monkeypatch.setattr(serving, "GRACE", 0.5)
    return tmp_path


def test_nothing_of_a_stubborn_server_is_left(run, standing, plugins, serves, monkeypatch):  # noqa: F811
    serves(f"{ANSWERS}{STUBBORN}server.serve_forever()")
    monkeypatch.setattr(serving, "_verify", lambda *args: "unseen")
    with (
        pytest.raises(KeyboardInterrupt),
        serving.serve(run, "mine", port=0, plugins=plugins) as server,
    ):
        group = server.process.pid
        assert len(of_group(group)) == 2
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert not of_group(group)


def test_other_prompts_are_refused(run, standing, plugins, serves, monkeypatch):  # noqa: F811
    serves(f"{ANSWERS}server.serve_forever()")
    monkeypatch.setattr(serving.Server, "prompt_ids", lambda *args: 1)
    before = {*children(os.getpid())}
    with (
        pytest.raises(fasttune.FasttuneError, match="makes other prompts") as error,
        serving.serve(run, "mine", port=0, plugins=plugins),
    ):
        pass
    assert "Add 2 and 3.': 1, the run has" in error.value.where
    assert {*children(os.getpid())} == before


def test_what_ends_a_server_is_said(run, standing, plugins, serves, monkeypatch):  # noqa: F811
    serves("print('no memory'); sys.exit(3)")
    with (
        pytest.raises(fasttune.FasttuneError, match="ended by itself, with status 3") as error,
        serving.serve(run, "mine", port=0, plugins=plugins),
    ):
        pass
    assert "no memory" in error.value.where


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("", "no address to listen on"),
        (" ", "no address to listen on"),
        ("255.255.255.255", "cannot listen there"),
        ("224.0.0.1", "cannot listen there"),
        ("192.0.2.1", "cannot listen there"),
        ("a" * 70, "cannot listen there"),
        ("x\0y", "cannot listen there"),
    ],
)
def test_what_is_no_address_is_refused(host, why):
    with pytest.raises(fasttune.FasttuneError, match=why) as caught:
        serving._listen(host, 0)
    assert "for example 127.0.0.1" in caught.value.hint and "--host" in caught.value.where


def test_the_port_is_held_from_the_beginning():
    with serving._listen("localhost", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(fasttune.FasttuneError, match="in use") as caught:
            serving._listen("127.0.0.1", port)
    assert "another port" in caught.value.hint


def test_the_printed_command_is_one_command():
    example = {"messages": [{"role": "user", "content": "it's; $(touch /tmp/x)"}]}
    server = serving.Server(
        ENGINES["transformers"], "run'; touch x; '", "http://h:1", None, Path(), example
    )
    words = shlex.split(server.curl)
    assert words[:2] == ["curl", "http://h:1/v1/chat/completions"] and len(words) == 6
    assert json.loads(words[-1])["model"] == "run'; touch x; '"


def test_what_cannot_be_served(run, plugins, monkeypatch, tmp_path):  # noqa: F811
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = cli("serve", run.folder, "--port", taken.getsockname()[1])
    assert ended.status == 2 and "cannot listen there" in ended.err
    ended = cli("serve", run.folder, "--engine", "transformer")
    assert ended.status == 2 and "did you mean 'transformers'" in ended.err
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    ended = cli("serve", run.folder, "--engine", "vllm")
    assert ended.status == 2 and "no module vllm" in ended.err and "pip install vllm" in ended.err

    failed = Exported(tmp_path, None, fasttune.FasttuneError("row 1: other ids"))
    monkeypatch.setattr(serving, "standing", lambda *args: failed)
    with pytest.raises(fasttune.FasttuneError, match="not verified: row 1: other ids"):
        serving.exported(run, "merged", plugins)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(serving, "standing", lambda *args: Exported(tmp_path, None))
    with pytest.raises(fasttune.FasttuneError, match="has no chat template"):
        serving.exported(run, "merged", plugins)
