"""The conversion of the demo model, without the model."""

from __future__ import annotations

import os
import subprocess
import sys

CONVERTING = """
import importlib.util, sys, time
from types import SimpleNamespace
from fasttune.models import demo

spec = SimpleNamespace(submodule_search_locations=[sys.argv[1]])
importlib.util.find_spec = lambda name: spec

def convert(gguf, target):
    time.sleep(0.3)
    (target / "config.json").write_text("{}")
    with open(gguf.parent / "log", "a") as file:
        file.write("converted\\n")

demo._convert = convert
print("ready", flush=True)
sys.stdin.readline()
folder = demo.demo_model()
assert [path.name for path in folder.iterdir()] == ["config.json"]
"""


def test_two_processes_convert_it_once_and_clear_away_what_a_killed_one_left(tmp_path):
    from fasttune.models.demo import DEMO_MODEL, GGUF

    wheel, cache = tmp_path / "wheel", tmp_path / "cache"
    wheel.mkdir()
    (wheel / GGUF).touch()
    (cache / f".{DEMO_MODEL}.abc.tmp").mkdir(parents=True)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERTING, wheel], stdin=subprocess.PIPE, text=True,
            stdout=subprocess.PIPE, env=os.environ | {"FASTTUNE_CACHE": str(cache)},
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert (wheel / "log").read_text() == "converted\n"
    assert not list(cache.glob("*.tmp")) and (cache / DEMO_MODEL).is_dir()
