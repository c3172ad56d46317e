"""Where Unsloth may write what it compiles: a folder for each process. Most of the processes here
import a stand-in of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

UNSLOTH = """
import os
from pathlib import Path

FastLanguageModel = None
folder = Path(os.environ.get("UNSLOTH_COMPILE_LOCATION", "unsloth_compiled_cache"))
assert not folder.exists() or not list(folder.iterdir())  # nothing of another process
folder.mkdir(parents=True, exist_ok=True)
(folder / "compiled.py").write_text("")
"""
PROCESS = """
import os, sys
from fasttune.models.unsloth import import_unsloth
import_unsloth()
print(os.environ["UNSLOTH_COMPILE_LOCATION"], flush=True)
sys.stdin.readline()
"""


class Process:
    """Imports the backend, tells its folder and waits for a line."""

    def __init__(self, home: Path, code: str = PROCESS, **environment: str) -> None:
        self.standing = home / "standing"
        self.standing.mkdir(exist_ok=True)
        (home / "unsloth.py").write_text(UNSLOTH)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("UNSLOTH")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.standing,
            env={
                **inherited,
                "PYTHONPATH": str(home),
                "FASTTUNE_CACHE": str(home / "cache"),
                **environment,
            },
        )
        self.folder = Path(self.process.stdout.readline().strip())

    def end(self) -> None:
        self.process.communicate("go\n", timeout=30)
        assert self.process.returncode == 0


@pytest.fixture
def start(tmp_path):
    """Starts processes that share a cache, and ends what is left of them."""
    started: list[Process] = []

    def start(*arguments: str, **environment: str) -> Process:
        started.append(Process(tmp_path, *arguments, **environment))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


def test_two_processes_compile_into_folders_of_their_own_that_end_with_them(start, tmp_path):
    one, other = start(), start()
    assert one.folder != other.folder
    for each in (one, other):
        assert each.folder.parent == tmp_path / "cache" / "unsloth"
        assert (each.folder / "compiled.py").is_file()  # that of the first is still there
    one.end()
    assert not one.folder.exists() and (other.folder / "compiled.py").is_file()
    other.end()
    assert list(one.folder.parent.iterdir()) == []
    assert list(one.standing.iterdir()) == []


def test_what_a_killed_process_left_is_swept_by_the_next(start):
    killed = start()
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    assert (killed.folder / "compiled.py").is_file()
    kept = killed.folder.with_name("notes")
    kept.mkdir()
    after = start()
    assert not killed.folder.exists()
    after.end()
    assert list(kept.parent.iterdir()) == [kept]


def test_a_process_does_not_take_over_the_folder_of_a_dead_one_of_its_number(start, tmp_path):
    code = (
        "import os, pathlib\n"
        "old = pathlib.Path(os.environ['FASTTUNE_CACHE'], 'unsloth', str(os.getpid()))\n"
        "old.mkdir(parents=True)\n"
        "(old / 'compiled.py').write_text('of other settings')\n"
    )
    after = start(code + PROCESS)
    assert (after.folder / "compiled.py").read_text() == ""
    after.end()


def test_a_child_does_not_compile_into_the_folder_of_its_parent(start):
    parent = start()
    child = start(UNSLOTH_COMPILE_LOCATION=str(parent.folder))
    assert child.folder != parent.folder
    child.end()
    assert (parent.folder / "compiled.py").is_file()
    parent.end()


def test_a_folder_that_a_person_chose_is_taken_and_stays(start, tmp_path):
    chosen = tmp_path / "mine"
    process = start(UNSLOTH_COMPILE_LOCATION=str(chosen))
    assert process.folder == chosen
    process.end()
    assert (chosen / "compiled.py").is_file() and not (tmp_path / "cache").exists()


WATCHED = """
import sys

class Watch:
    found = []

    def find_spec(name, path=None, target=None):
        Watch.found.append(name)

sys.meta_path.insert(0, Watch)
{code}
print(*Watch.found)
"""
TRAIN = """
import contextlib
from types import SimpleNamespace
from fasttune import start

start.require_model = lambda model: None
with contextlib.suppress(AttributeError):
    start.train(SimpleNamespace(model=""))
"""


def imports_of(code: str) -> list[str]:
    """The modules that code imports, in order, in a process of its own."""
    command = [sys.executable, "-c", WATCHED.format(code=code)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def begun(*modules: str) -> list[str]:
    """The modules whose import began with that of fasttune's, in order, in a process of its own."""
    return imports_of("import " + ", ".join(f"fasttune.{module}" for module in modules))


def test_unsloth_is_imported_before_what_it_patches():
    names = imports_of(TRAIN)
    first = names.index("unsloth")
    assert first < min(names.index(name) for name in ("transformers", "trl", "peft"))


def test_other_packages_import_neither_unsloth_nor_what_it_patches():
    names = begun("benchmark.arms", "models.fast.fast")
    names += begun("exports.export", "inspection.survey", "losses", "start", "source")
    assert "torch" in names and not {"unsloth", "transformers", "trl", "peft"} & set(names)


def test_to_generate_on_a_cpu_takes_no_unsloth():
    names = begun("generation.generator", "generation.likelihood", "exports.opening")
    assert "transformers" in names and not {"unsloth", "trl"} & set(names)


def test_unsloth_itself_compiles_where_it_is_told_to():
    import tests.unsloth_first  # noqa: F401

    # isort: split
    from unsloth_zoo.compiler import UNSLOTH_COMPILE_LOCATION

    folder = Path(UNSLOTH_COMPILE_LOCATION)
    assert folder.name == str(os.getpid()) and folder.is_dir()
    assert not Path("unsloth_compiled_cache").exists()
