"""The one try to reach the Hub, and what follows where it does not answer."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import types
import warnings

import huggingface_hub
import pytest
from huggingface_hub import constants

from fasttune import hub
from fasttune.errors import FasttuneError
from tests.cli.test_app import modules_after

pytestmark = pytest.mark.slow

CALL = "import sys; from fasttune.cli import main; main(sys.argv[1:])"


@pytest.fixture
def online(monkeypatch):
    """A process that has not asked yet, with a Hub at https://hub.example; undone afterwards."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")  # so that what the code sets is taken back
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    monkeypatch.setattr(hub, "_reason", "")
    hub.problem.cache_clear()
    yield
    hub.problem.cache_clear()


@pytest.fixture
def answer(monkeypatch, online):
    """Let requests be answered by a function; gives the list of what was asked."""
    asked = []

    def by(head):
        def ask(url, timeout):
            asked.append((url, timeout))
            return head()

        session = types.SimpleNamespace(head=ask)
        monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
        return asked

    return by


def status(code):
    return lambda: types.SimpleNamespace(status_code=code)


def refuse():
    raise ConnectionError("refused")


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (status(200), ""),
        (status(404), ""),  # a mirror has nothing at its root
        (status(503), "answers with status 503"),
        (refuse, "ConnectionError"),
    ],
)
def test_what_counts_as_an_answer(answer, head, problem):
    asked = answer(head)
    assert hub.problem() == problem
    assert asked == [("https://hub.example", hub.SECONDS)]


def test_a_hub_that_never_answers(answer, monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.1)
    released = threading.Event()
    answer(lambda: released.wait(20))
    assert hub.problem().startswith("no answer in")
    released.set()


def test_it_is_tried_once(answer):
    asked = answer(refuse)
    assert hub.reach("owner/one") == hub.reach("owner/two")
    assert (
        hub.reach("owner/two") == "the Hub cannot be reached (https://hub.example: ConnectionError)"
    )
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["./owner/name", "/nowhere/at/all", "a/b/c", "folder"])
def test_what_the_hub_cannot_know_is_not_asked_for(answer, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    asked = answer(refuse)
    assert hub.reach(name) == "" and asked == []
    assert not hub.why_offline()


def test_a_hub_that_answers_changes_nothing(answer):
    answer(status(200))
    assert hub.reach("owner/name") == hub.why_offline() == ""
    assert not constants.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_without_an_answer_every_library_is_offline(answer, monkeypatch):
    import datasets
    import transformers.utils.hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    answer(refuse)
    hub.reach("owner/name")
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # what Unsloth, PEFT and child processes read
    assert transformers.utils.hub.is_offline_mode()
    assert datasets.config.HF_HUB_OFFLINE and datasets.config.HF_DATASETS_OFFLINE


def test_peft_does_not_warn_of_what_it_cannot_ask(online):
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        warnings.warn("Could not find a config file in owner/name - will assume", stacklevel=1)
        assert len(seen) == 1
        hub.go_offline()
        warnings.warn("Could not find a config file in owner/name - will assume", stacklevel=1)
        assert len(seen) == 1


def test_offline_by_choice_asks_nothing(answer, monkeypatch):
    asked = answer(refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.reach("owner/name") == "HF_HUB_OFFLINE is set"
    assert asked == []


# The commands, with a Hub at a port of this machine


def fasttune(*arguments, **environment):
    """Run a command in a process that may ask the Hub: its exit status, stdout and stderr."""
    own = {key: value for key, value in os.environ.items() if not key.endswith("_OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-c", CALL, *arguments],
        env={**own, **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


class Broken(threading.Thread):
    """A Hub that hangs up on everyone, and an empty cache.

    Attributes:
        calls: how often it was called.
        environment: of a process that calls it.
    """

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.calls = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.environment = {"HF_ENDPOINT": address, "HF_HOME": str(folder)}

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self.socket.accept()
                self.calls += 1
                caller.close()


@pytest.fixture
def broken(tmp_path):
    hub = Broken(tmp_path / "hf")
    hub.start()
    yield hub
    hub.socket.close()


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    row = {"instruction": "Add 1 and 1.", "output": "2"}
    file.write_text("".join(json.dumps({**row, "input": str(n)}) + "\n" for n in range(12)))
    return str(file)


UNREACHED = "the Hub cannot be reached (http://127.0.0.1:"


def test_a_plan_for_phi_2_needs_no_hub(broken, rows):
    arguments = ("plan", "--gpu", "t4", "--template", "alpaca", "--data", rows, "--json")
    code, out, err = fasttune(*arguments, **broken.environment)
    assert code == 0 and json.loads(out)["parameters"] == 2_779_683_840
    line, chosen = err.splitlines()
    assert chosen.startswith("auto: learning rate 0.0002")
    assert line.startswith(f"rows not counted, taken as model.max_length tokens: {UNREACHED}")
    assert broken.calls == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "--model", "nobody/nothing"),
        ("data", "--template", "alpaca", "--model", "nobody/nothing", "ROWS"),
        ("data", "nobody/nothing"),
        ("run", "--template", "alpaca", "--data", "ROWS", "--model", "nobody/nothing"),
        ("generate", "nobody/nothing", "hello"),
    ],
    ids=["shape", "tokenizer", "data set", "run", "generate"],
)
def test_what_only_the_hub_has_fails_after_one_try_in_three_lines(broken, rows, arguments):
    words = [rows if word == "ROWS" else word for word in arguments]
    code, out, err = fasttune(*words, **broken.environment)
    message, where, hint = err.splitlines()
    assert code == 2 and out == ""
    assert message.startswith("error: ") and "nobody/nothing" in message
    assert UNREACHED in where and "cache does not hold" in where
    assert hint.startswith("  what to do: ")
    assert broken.calls == 1


def test_it_fails_before_anything_is_imported_that_takes_long(broken):
    told = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {CALL}"
    done = subprocess.run(
        [sys.executable, "-c", told, "generate", "nobody/nothing", "hello"],
        env={**os.environ, **broken.environment, "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and UNREACHED in done.stderr
    assert done.stdout == "False\n"


def test_a_cached_model_is_taken_without_the_hub(broken, rows, tiny_phi, tmp_path):
    cached = tmp_path / "hf" / "hub" / "models--owner--phi"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / "abc").symlink_to(tiny_phi)
    arguments = ("plan", "--gpu", "t4", "-t", "alpaca", "-d", rows, "-m", "owner/phi", "--json")
    code, out, err = fasttune(*arguments, "data.eval_fraction=0", **broken.environment)
    assert code == 0 and json.loads(out)["rows"] == 12
    line, chosen = err.splitlines()
    assert chosen.startswith("auto: ")
    assert line.startswith(UNREACHED) and line.endswith(": its cache is used")
    assert broken.calls == 1


def test_what_needs_no_hub_does_not_import_its_client():
    assert "huggingface_hub" not in modules_after("templates", "list")
    assert "huggingface_hub" not in modules_after("plan", "--gpu", "t4")


def test_a_base_that_is_not_in_the_cache_is_not_exported(answer, monkeypatch, tmp_path):
    from fasttune.models.base import base_folder

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    asked = answer(refuse)
    with pytest.raises(FasttuneError, match="nobody/nothing") as caught:
        base_folder("nobody/nothing")
    assert "cannot be reached" in caught.value.where and len(asked) == 1
