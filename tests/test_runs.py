"""The run folder and what becomes of one that is damaged, without a model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from fasttune.config import RunConfig, load_config
from fasttune.data.rows import StoredRows
from fasttune.data.split import data_hash
from fasttune.errors import FasttuneError
from fasttune.files import NAME, SEAL, seal
from fasttune.formats.parts import Segment, given, learn
from fasttune.formats.row import Row
from fasttune.formats.template import Template
from fasttune.plugins.discovery import load_plugins
from fasttune.plugins.registry import Plugins, Provider
from fasttune.runs import Run, create_run, find_run, list_runs
from fasttune.runs.resume import last_checkpoint, require_resumable, rewind
from tests.conftest import cli, listening

OLD = Path(__file__).parent / "old_run"
FACTS = {
    key: value
    for key, value in json.loads((OLD / "manifest.json").read_text()).items()
    if key in ("template", "system", "model", "quantization", "dtype", "lora", "data", "versions")
} | {"device": "cpu"}


@pytest.fixture
def run(tmp_path) -> Run:
    """A finished run with two checkpoints."""
    folder = tmp_path / "runs" / "old"
    shutil.copytree(OLD, folder)
    run = Run(folder)
    later = folder / "checkpoints" / "checkpoint-4"
    shutil.copytree(folder / "checkpoints" / "checkpoint-2", later)
    state = json.loads((later / "trainer_state.json").read_text())
    (later / "trainer_state.json").write_text(json.dumps(state | {"global_step": 4}))
    for checkpoint in run.checkpoints.iterdir():
        seal(checkpoint)
    return run


# What is made


def test_a_new_run_is_whole_from_the_beginning(tmp_path):
    config = load_config(None, [("output", str(tmp_path / "runs")), ("lora.r", 4)])
    run = create_run(config, "models/a model, mine", FACTS)
    assert NAME.fullmatch(run.name) and run.name.startswith("reasoning-a-model-mine-")
    assert (run.manifest["status"], run.manifest["format"]) == ("running", 2)
    assert run.config == load_config(run.folder / "config.yaml") == config
    assert run.metrics() == [] and last_checkpoint(run) is None
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.name]
    assert run.folder.stat().st_mode & 0o777 == Path(tmp_path / "runs").stat().st_mode & 0o777


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    config = load_config(None, [("output", str(tmp_path / "runs"))])
    written = []

    def full(target, value):
        written.append(target)
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("fasttune.runs.index.write_json", full)
    with pytest.raises(FasttuneError, match="cannot make the run folder"):
        create_run(config, "model", FACTS)
    assert written and not list((tmp_path / "runs").iterdir())


CREATE = """
import sys
from pathlib import Path
from fasttune.config import load_config
from tests.test_runs import FACTS
from fasttune.runs import create_run
config = load_config(None, [("output", sys.argv[1])])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    print(create_run(config, "model", FACTS).name)
"""


def test_two_processes_make_runs_at_once(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, str(tmp_path / "runs")], cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    with ThreadPoolExecutor() as pool:
        outs = pool.map(lambda process: process.communicate("go\n")[0], processes)
    names = [name for out in outs for name in out.split()]
    assert len(names) == len(set(names)) == 40
    assert {run.name for run in list_runs(tmp_path / "runs")} == set(names)
    assert all(run.manifest["status"] == "running" for run in list_runs(tmp_path / "runs"))


def test_one_process_trains_a_run(run):
    with run.locked():
        code = (
            "import sys\nfrom pathlib import Path\nfrom fasttune.runs import Run\n"
            "with Run(Path(sys.argv[1])).locked(): pass"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True
        )
        assert "is being trained by another process" in other.stderr
    assert not (run.folder / ".lock").exists()
    with run.locked():
        pass


# What is read


@pytest.mark.parametrize("version", [1, None])
def test_a_run_of_an_earlier_fasttune_is_one_error_that_names_it(version, run, monkeypatch):
    file = run.folder / "manifest.json"
    written = json.loads(file.read_text())
    del written["format"]
    written |= {} if version is None else {"format": version}
    written["versions"]["fasttune"] = "0.0.9"
    file.write_text(json.dumps(written))
    shutil.copytree(OLD, run.folder.with_name("new"))
    monkeypatch.chdir(run.folder.parents[1])
    for command in (("runs", "show", "old"), ("run", "--resume", "old"), ("generate", "old", "x"),
                    ("export", "old"), ("compare", "old", "new")):  # fmt: skip
        ended = cli(*command)
        assert (ended.status, ended.out) == (2, ""), command
        assert ended.err.splitlines() == [
            "error: the run was written by fasttune 0.0.9, whose runs this version does not read",
            f"  where: runs/old/manifest.json: format {version or 0}; this version reads format 2",
            "  what to do: use that version for this run, or train it again",
        ], command


def damage(run: Run, file: str, what: object) -> None:
    path = run.folder / file
    if what == "a folder":
        path.unlink()
        path.mkdir()
    elif isinstance(what, bytes):
        path.write_bytes(what)
    else:
        path.write_text(what(path.read_text()))


def edited(**values: object):
    return lambda text: json.dumps(json.loads(text) | values)


def without(key: str):
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != key})


MANIFESTS = {
    "cut": (lambda text: text[: len(text) // 2], "is no JSON"),
    "empty": (b"", "is empty"),
    "a list": (b"[]", "Expected `object`, got `array`"),
    "null": (b"null", "Expected `object`, got `null`"),
    "not UTF-8": (b'{"status": "\xff"}', "is not UTF-8 at byte 12"),
    "nested too deeply": (b"[" * 100_000, "is no JSON"),
    "a folder": ("a folder", "cannot be read: Is a directory"),
    "without a status": (without("status"), "missing required field `status`"),
    "without a model": (without("model"), "missing required field `model`"),
    "without data": (without("data"), "missing required field `data`"),
    "another status": (edited(status="fine"), "Invalid enum value 'fine' - at `$.status`"),
    "steps of text": (edited(steps="4"), "Expected `int`, got `str` - at `$.steps`"),
    "scores of text": (edited(scores={"after": {"x": "y"}}), "Expected `float`, got `str`"),
    "a template in a word": (edited(template="alpaca"), "Expected `object`, got `str`"),
    "a digest of a number": (edited(adapter_sha256=3), "at `$.adapter_sha256`"),
    "a later format": (edited(format=99), "format 99; this version reads format 2"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_damaged_manifest_is_an_error_of_that_run_alone(kind, run, monkeypatch):
    other = create_run(load_config(None, [("output", str(run.folder.parent))]), "model", FACTS)
    what, why = MANIFESTS[kind]
    damage(run, "manifest.json", what)
    where = str(run.folder / "manifest.json")
    with pytest.raises(FasttuneError) as caught:
        run.manifest  # noqa: B018
    assert why in caught.value.where and where in caught.value.where and caught.value.hint
    assert repr(run).startswith(f"<Run {run.folder}: ")

    monkeypatch.chdir(run.folder.parents[1])
    listed = cli("runs", "list")
    assert listed.status == 0 and other.name in listed.out and "damaged" in listed.out
    assert why in listed.err and where.removeprefix(f"{Path.cwd()}/") in listed.err
    told = {each["run"]: each["status"] for each in json.loads(cli("runs", "list", "--json").out)}
    assert told == {"runs/old": "damaged", f"runs/{other.name}": "running"}
    with listening() as said:
        assert find_run("last").name == other.name
    assert said == []  # the damaged one is the oldest
    for command in (("runs", "show", "old"), ("run", "--resume", "old"), ("generate", "old", "x")):
        ended = cli(*command)
        assert ended.status == 2 and why in ended.err and "what to do: " in ended.err, command


def test_last_passes_over_what_is_damaged(run, monkeypatch):
    monkeypatch.chdir(run.folder.parents[1])
    damage(run, "manifest.json", b"{")
    ended = cli("runs", "show", "last")
    assert ended.status == 2 and "there is no run 'last'" in ended.err
    assert "warning: skipped old: manifest.json is damaged" in ended.err


METRICS = {
    "half a line between": (lambda text: text.replace('"step": 1, ', '"step": 1\n', 1), "line "),
    "a list": (lambda text: "[1]\n" + text, "line 1: Expected `object`, got `array`"),
    "a step of text": (lambda text: '{"step": "1"}\n' + text, "line 1: Expected `int`"),
    "no step": (lambda text: '{"loss": 1.0}\n' + text, "missing required field `step`"),
    "a loss of text": (lambda text: '{"step": 1, "loss": "x"}\n' + text, "line 1: Expected `float"),
    "not UTF-8": (b'{"step": 1}\n\xff\xfe\n', "line 2: is not UTF-8"),
    "a folder": ("a folder", "cannot be read"),
}


@pytest.mark.parametrize("kind", METRICS)
def test_damaged_metrics_are_an_error_of_that_run_alone(kind, run, monkeypatch):
    what, why = METRICS[kind]
    damage(run, "metrics.jsonl", what)
    with pytest.raises(FasttuneError, match=r"metrics\.jsonl is damaged") as caught:
        run.metrics()
    assert why in caught.value.where and caught.value.hint
    monkeypatch.chdir(run.folder.parents[1])
    listed = cli("runs", "list")
    assert listed.status == 0 and "damaged" in listed.out and why in listed.err
    assert cli("runs", "show", "old").status == 2


def test_half_a_last_line_is_left_out_and_said_where_the_run_goes_on(run):
    whole = run.metrics()
    text = (run.folder / "metrics.jsonl").read_text()
    (run.folder / "metrics.jsonl").write_text(text + '{"step": 5, "lo')
    assert run.metrics() == whole
    with listening() as said:
        rewind(run, 2)
    assert len(said) == 1 and "incomplete, as after SIGKILL" in said[0]
    assert run.metrics() == [line for line in whole if line["step"] <= 2]


def test_going_back_takes_away_what_killed_processes_left(run):
    for left in (".checkpoint-6.x.tmp", ".checkpoint-4.y.old"):
        (run.checkpoints / left).mkdir()
    (run.folder / ".manifest.json.77.tmp.json").touch()
    rewind(run, 2)
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-2"]
    assert not list(run.folder.glob(".*"))


# Seals


@pytest.fixture
def sealed(run) -> Run:
    run.update({"adapter_sha256": seal(run.adapter)})
    run.check_adapter()
    return run


def test_a_seal_is_what_sha256sum_reads(sealed):
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", SEAL], cwd=sealed.adapter, capture_output=True
    )
    assert done.returncode == 0 and done.stdout.count(b": OK") == 3


def flip(file: Path) -> None:
    found = bytearray(file.read_bytes())
    found[-1] ^= 1
    file.write_bytes(bytes(found))


def rewrite(old: str, new: str):
    return lambda file: file.write_text(file.read_text().replace(old, new))


ADAPTERS = {
    "another alpha": (
        "adapter_config.json", rewrite('"lora_alpha": 16', '"lora_alpha": 32'),
        "adapter_config.json is not what was written",
    ),
    "a flipped bit": (
        "adapter_model.safetensors", flip, "adapter_model.safetensors is not what was written",
    ),
    "a file less": ("template.json", Path.unlink, "template.json is missing"),
    "no seal": (SEAL, Path.unlink, "SHA256SUMS cannot be read"),
    "an empty seal": (SEAL, lambda file: file.write_text(""), "SHA256SUMS is not the one"),
    "another seal": (SEAL, rewrite("0", "1"), "SHA256SUMS is not the one"),
    "a seal that is not UTF-8": (SEAL, lambda f: f.write_bytes(b"\xff"), "SHA256SUMS cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_that_is_not_what_training_wrote_is_refused(kind, sealed, monkeypatch):
    name, change, why = ADAPTERS[kind]
    change(sealed.adapter / name)
    monkeypatch.chdir(sealed.folder.parents[1])
    for command in (("generate", "old", "x"), ("export", "old"), ("chat", "old")):
        ended = cli(*command)
        assert ended.status == 2 and f"the adapter is damaged: {why}" in ended.err, command
        assert "what to do: restore it; or delete" in ended.err


@pytest.mark.parametrize(
    "line", ["x", "0" * 64 + "  ../config.yaml", "0" * 64 + "  /etc/passwd", "0" * 63 + "  a"]
)
def test_a_seal_leads_to_no_file_outside(line, run):
    (run.adapter / SEAL).write_text(line + "\n")
    with pytest.raises(FasttuneError, match="line 1 of SHA256SUMS is malformed"):
        run.check_adapter()


# Checkpoints


def state(**values: object):
    return lambda f: f.write_text(json.dumps(json.loads(f.read_text()) | values))


CHECKPOINTS = {
    **{
        f"without {name}": (name, Path.unlink, f"{name} is missing")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors",
                     "adapter_config.json", "trainer_state.json")
    },
    "a state that is cut": (
        "trainer_state.json", lambda f: f.write_text(f.read_text()[:50]), "is no JSON"),
    "a state of another step": ("trainer_state.json", state(global_step=3), "is of step 3"),
    "a state of text": ("trainer_state.json", state(global_step="4"), "Expected `int`"),
}  # fmt: skip


@pytest.mark.parametrize("resealed", [False, True])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(kind, resealed, run):
    name, change, why = CHECKPOINTS[kind]
    newest = run.checkpoints / "checkpoint-4"
    assert last_checkpoint(run) == newest
    change(newest / name)
    if resealed:
        seal(newest)
    with listening() as said:
        assert last_checkpoint(run) == run.checkpoints / "checkpoint-2"
    assert len(said) == 1 and said[0].endswith("using checkpoint-2")
    if not resealed and "missing" not in why:
        why = f"{name} is not what was written"
    assert why in said[0] and str(newest) in said[0]


def test_a_flipped_bit_of_the_optimizer_is_seen(run):
    flip(run.checkpoints / "checkpoint-4" / "optimizer.pt")
    assert last_checkpoint(run) == run.checkpoints / "checkpoint-2"


def test_where_no_checkpoint_is_whole_each_is_named(run):
    for each in ("checkpoint-2", "checkpoint-4"):
        (run.checkpoints / each / "optimizer.pt").unlink()
    with pytest.raises(FasttuneError, match="every checkpoint of the run is damaged") as caught:
        last_checkpoint(run)
    assert caught.value.where.count("optimizer.pt is missing") == 2
    assert f"delete {run.checkpoints}" in caught.value.hint


def test_what_is_no_checkpoint_does_not_count(run):
    for name in ("checkpoint-x", "checkpoint-", ".checkpoint-9.tmp"):
        (run.checkpoints / name).mkdir()
    (run.checkpoints / "checkpoint-7").touch()
    assert last_checkpoint(run) == run.checkpoints / "checkpoint-4"


# Going on


@pytest.fixture
def stopped(tmp_path) -> Run:
    config = load_config(None, [("output", str(tmp_path / "runs")), ("template", "alpaca")])
    facts = load_plugins().facts("alpaca")
    run = create_run(config, "model", FACTS | {"template": facts})
    run.update({"status": "interrupted"})
    return run


def test_an_edited_config_is_shown_and_refused(stopped):
    began = require_resumable(stopped)
    file = stopped.folder / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("r: 16", "r: 8").replace("batch_size: 4", "batch_size: 2"))
    with pytest.raises(FasttuneError, match="has changed since the run began") as caught:
        require_resumable(stopped)
    assert "lora.r: 16 became 8" in caught.value.where
    assert "train.batch_size: 4 became 2" in caught.value.where and "--force" in caught.value.hint
    assert stopped.config == began  # what else is done with the run goes by its own settings
    assert require_resumable(stopped, force=True).lora.r == 8
    file.write_text("[")
    with pytest.raises(FasttuneError, match="cannot read the config") as caught:
        require_resumable(stopped)
    assert "--force to continue as the run began" in caught.value.hint
    assert require_resumable(stopped, force=True) == began


# The format and the held-out rows


PARTS = [given("question", "Q: {instruction}\n"), learn("response", "A: {output}")]
MINE = Template(name="mine", parts=PARTS)


class Shouted(Template):
    def segments(self, row):
        yield Segment("question", row["instruction"].upper(), train=False)
        yield Segment("response", row.get("output", ""), train=True)


def run_of(template: Template, tmp_path: Path, path: str = "/gone/mine.py", **facts: str) -> Run:
    """A run whose format came from a plugin file."""
    own = {
        "name": template.name, "identity": template.identity, "plugin": "mine", "path": path,
        "declaration": None if template.computed else template.declaration,
        "distribution": "", "version": "",
    }  # fmt: skip
    config = load_config(None, [("output", str(tmp_path / "runs")), ("template", template.name)])
    return create_run(config, "model", FACTS | {"template": own | facts})


def loaded_with(template: Template, tmp_path: Path) -> Plugins:
    """Plugins of which a file provides a template."""
    found = load_plugins()
    found.templates[template.name] = (template, Provider("mine", tmp_path / "mine.py"))
    return found


def test_a_run_has_its_format_without_the_plugin(tmp_path):
    run = run_of(MINE, tmp_path)
    with listening() as said:
        assert run.template(load_plugins()) == MINE
        renamed = replace(MINE, description="the same format")
        assert run.template(loaded_with(renamed, tmp_path)) == MINE
    assert said == []
    run.update({"system": "Be brief."})
    assert run.template(load_plugins()).system == "Be brief."


def test_another_format_of_the_same_name_is_shown_and_used_only_with_force(tmp_path):
    run = run_of(MINE, tmp_path)
    other = replace(MINE, parts=[given("question", "Question: {instruction}\n"), PARTS[1]])
    plugins = loaded_with(other, tmp_path)
    with listening() as said:
        assert run.kept_template(plugins) == (MINE, run.manifest["template"])
        assert run.kept_template(plugins, force=True) == (other, plugins.facts("mine"))
    own, forced = said
    assert own.splitlines() == [
        f"note: template 'mine' is not what run '{run.name}' was trained with; using the run's "
        "(--force uses the loaded one)",
        "  part 1: {'given': 'question', 'text': 'Q: {instruction}\\n'} became "
        "{'given': 'question', 'text': 'Question: {instruction}\\n'}",
    ]
    assert forced.splitlines()[0].endswith("using the loaded one (--force)")


@pytest.mark.parametrize(
    ("facts", "hint"),
    [
        ({}, "add --plugin /gone/mine.py, or wherever the file is now"),
        ({"distribution": "fasttune-mine", "version": "1.2"}, "pip install fasttune-mine==1.2"),
    ],
)
def test_a_format_that_is_computed_needs_its_plugin(facts, hint, tmp_path):
    run = run_of(Shouted(name="shouted"), tmp_path, **facts)
    with pytest.raises(FasttuneError) as caught:
        run.template(load_plugins())
    assert str(caught.value).splitlines() == [
        f"the format 'shouted' of run '{run.name}' computes its text, so it needs its plugin",
        "it was in /gone/mine.py",
        hint,
    ]


def test_a_format_whose_code_has_changed_is_used_only_with_force(tmp_path):
    mine = Shouted(name="shouted")
    plugins = loaded_with(mine, tmp_path)
    assert run_of(mine, tmp_path).template(plugins) is mine
    run = run_of(mine, tmp_path, identity="0" * 64)
    with pytest.raises(FasttuneError) as caught:
        run.template(plugins)
    assert str(caught.value).splitlines() == [
        f"the code of template 'shouted' has changed since '{run.name}' was trained",
        f"trained with {'0' * 64} (/gone/mine.py)",
        f"now loaded   {mine.identity} ({tmp_path / 'mine.py'})",
        "restore the plugin, or use --force to continue with it as it is",
    ]
    assert run.template(plugins, force=True) is mine


def test_a_run_keeps_its_rows(tmp_path):
    rows = StoredRows()
    rows.append({"instruction": "Wie heißt das?", "output": "Ö", "task": "名"}, 7)
    rows.append(Row.of({"instruction": "And 2?", "output": "4"}, [{"instruction": "1?"}]), 9)
    rows.append(Row([{"instruction": "¿Qué?", "output": "\u2028x"}], "Be brief.", {}, "es"), 12)
    data = FACTS["data"] | {"heldout_sha256": data_hash(rows), "train_sha256": data_hash(rows)}
    config = load_config(None, [("output", str(tmp_path / "runs"))])
    run = create_run(config, "model", FACTS | {"data": data}, rows, rows)
    found = run.held_out()
    assert found == rows and [found.number(at) for at in range(3)] == [7, 9, 12]
    assert (found[1].turns[0], found[2].language) == ({"instruction": "1?"}, "es")
    assert found[0]["task"] == "名" and found[2].system == "Be brief."
    assert run.training_rows() == rows
    bare = create_run(
        config, "model", FACTS | {"data": data | {"heldout_sha256": data_hash([])}}, StoredRows()
    )
    assert len(bare.held_out()) == 0 and not (bare.folder / "heldout.jsonl").exists()


HELD_OUT = {
    "missing": Path.unlink,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "empty": lambda file: file.write_text(""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "a row less": lambda file: file.write_text("".join(file.open().readlines()[1:])),
    "another order": lambda file: file.write_text("".join(file.open().readlines()[::-1])),
    "another word": rewrite("Add 3", "Sum 3"),
    "not UTF-8": lambda file: file.write_bytes(b"\xff"),
    "a number of text": rewrite("[4,", '["4",'),
    "a number too large": rewrite("[4,", f"[{10**30},"),
    "a language of numbers": rewrite('4, ""', "4, 5"),
    "no turns": lambda file: file.write_text('[4, "", {"system": "", "turns": []}]\n'),
    "nested too deeply": lambda file: file.write_text("[" * 100_000),
}


def test_damaged_training_rows_are_one_error(run, monkeypatch):
    assert [run.training_rows()[at]["output"] for at in (0, -1)] == ["1", "77"]
    file = run.folder / "training.jsonl"
    file.write_text(file.read_text().replace("Add 1", "Sum 1"))
    run.update({"status": "interrupted"})
    monkeypatch.chdir(run.folder.parents[1])
    ended = cli("run", "--resume", "old")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        "error: the run's training rows are missing or damaged",
        "  where: runs/old/training.jsonl",
        "  what to do: restore the file",
    ]


@pytest.mark.parametrize("kind", HELD_OUT)
def test_damaged_held_out_rows_are_one_error(kind, run):
    assert [row["instruction"] for row in run.held_out()][:2] == ["Add 3 and 4.", "Add 5 and 6."]
    HELD_OUT[kind](run.folder / "heldout.jsonl")
    with pytest.raises(FasttuneError) as caught:
        run.held_out()
    assert str(caught.value).splitlines() == [
        "the run's held-out rows are missing or damaged",
        str(run.folder / "heldout.jsonl"),
        "restore the file",
    ]


def test_paths_are_kept_in_full_and_shown_from_where_one_stands(tmp_path, monkeypatch):
    from fasttune.config import in_full
    from fasttune.files import short_path

    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.jsonl").touch()
    given = load_config(
        None, [("model.name", "model"), ("data.train", "rows.jsonl"), ("data.eval", "owner/name")]
    )
    full = in_full(given)
    assert full.model.name == str(tmp_path / "model")
    assert full.data.train == str(tmp_path / "rows.jsonl") and full.data.eval == "owner/name"
    assert in_full(RunConfig()) == RunConfig()
    assert short_path(full.model.name) == "model" and short_path("owner/name") == "owner/name"
    assert short_path(os.sep + "elsewhere") == os.sep + "elsewhere"


def write(path: Path, text: str = "mine") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def replace_manifest(path: Path, change) -> None:
    path.unlink()
    change(path)


REFUSED = {
    "no run": (lambda f: write(f / "manifest.json", '{"format": 2, "mine": true}'), "is damaged"),
    "a manifest that is a folder": (
        lambda f: replace_manifest(f / "manifest.json", Path.mkdir), "is damaged"),
    "a manifest that is a dangling link": (
        lambda f: replace_manifest(f / "manifest.json", lambda m: m.symlink_to("x")), "is damaged"),
    "a file": (lambda f: write(f / "thesis.docx"), "did not write"),
    "a hidden file": (lambda f: write(f / ".bashrc"), "did not write"),
    "a folder with a name of ours": (lambda f: write(f / "samples.md" / "a.txt"), "did not write"),
    "a file in the adapter": (lambda f: write(f / "adapter" / "notes.txt"), "did not write"),
    "a file in a checkpoint": (
        lambda f: write(f / "checkpoints/checkpoint-4/notes.txt"), "did not write"),
    "a folder among checkpoints": (lambda f: write(f / "checkpoints/x/a.txt"), "did not write"),
    "a folder among exports": (lambda f: write(f / "exports" / "x" / "a.txt"), "did not write"),
    "a link": (lambda f: (f / "exports").symlink_to(f.parent), "contains a symbolic link"),
    "a dangling link": (
        lambda f: (f / "adapter/x").symlink_to("gone"), "contains a symbolic link"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_runs_rm_removes_only_what_fasttune_wrote(run, what, monkeypatch):
    seal(run.adapter)
    change, why = REFUSED[what]
    change(run.folder)
    before = sorted(run.folder.rglob("*"))
    ended = cli("runs", "rm", run.folder, "--yes")
    assert ended.status == 2 and why in ended.err, ended.err
    assert sorted(run.folder.rglob("*")) == before


def test_runs_rm_from_inside_or_through_a_link_is_refused(run, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(run.folder)
    monkeypatch.chdir(run.folder / "adapter")
    for name in (tmp_path / "link", "..", run.folder):
        ended = cli("runs", "rm", name, "--yes")
        assert ended.status == 2 and "is a link or contains the current folder" in ended.err
    assert (run.folder / "config.yaml").is_file()


def test_runs_rm_removes_a_run_with_all_that_kills_left(run):
    write(run.folder / ".manifest.json.77.tmp.json")
    write(run.folder / "checkpoints/README.md")
    write(run.folder / "checkpoints/.checkpoint-6.x_1.tmp/a")
    write(run.folder / "checkpoints/checkpoint-6/optimizer.pt")
    write(run.folder / "exports/.gguf.abc.tmp/half")
    assert cli("runs", "rm", run.folder, "--yes").status == 0
    assert not list(run.folder.parent.glob(f"*{run.name}*"))


def test_a_run_with_a_link_is_not_resumed(run, tmp_path):
    checkpoints = run.checkpoints.rename(tmp_path / "elsewhere")
    run.checkpoints.symlink_to(checkpoints)
    (checkpoints / ".x.y.old").mkdir()
    run.update({"status": "interrupted"})
    ended = cli("run", "--resume", run.folder)
    assert ended.status == 2 and f"{run.checkpoints} -> {checkpoints}" in ended.err
    assert (checkpoints / ".x.y.old").is_dir()
