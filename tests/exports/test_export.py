"""Exports end to end on a tiny Phi, and the proof that verification can fail."""

from __future__ import annotations

import dataclasses
import errno
import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

import tests.unsloth_first  # noqa: F401

# isort: split
from safetensors.torch import load_file, save_file

from fasttune.errors import FasttuneError
from fasttune.exports import export as exporting
from fasttune.exports.card import base_licence
from fasttune.exports.job import RunExport
from fasttune.exports.opening import open_run_model
from fasttune.exports.verify import Measured, judge, kl_divergence, measure
from fasttune.files import seal
from fasttune.formats.parts import given, learn
from fasttune.formats.template import Template
from fasttune.models.tokenizer import saved_tokenizer
from fasttune.plugins.discovery import load_plugins
from fasttune.plugins.exporter import EXACT, QUANTISED, Bounds
from fasttune.runs import Run
from tests.conftest import cli, listening
from tests.exports.conftest import END, EOS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fasttune.exports.verify.GREEDY", 24)
        yield


@pytest.fixture(scope="module")
def run(make_run) -> Run:
    return make_run("tiny", system="Answer in one word.")


def export(run: Run, name: str, plugins, target: Path | None = None, options=None, **settings):
    given = {"rows": 1, **settings, **(options or {})}
    return exporting.export(run, name, output=target, plugins=plugins, **given)


@pytest.fixture(scope="module")
def exported(run, plugins, tmp_path_factory):
    return export(run, "merged", plugins, tmp_path_factory.mktemp("exports") / "merged", rows=2)


@pytest.fixture(scope="module")
def expected(run, plugins):
    """The held-out rows and what the run makes of them."""
    template = run.template(plugins)
    rows = exporting.verification_rows(run, template, 2)
    reader = open_run_model(run.model_config, run.adapter, template)
    return rows, measure(reader, rows)


def test_merged_is_verified_and_written_whole(exported):
    found = exported.verification
    assert found is not None and found.verified, found
    assert found.bounds == EXACT
    assert (found.rows, found.prompts_equal) == (2, 2)
    assert 0 < found.max_dlogit < 1e-4
    assert found.greedy_equal == found.greedy > 0
    assert found.eos_run == found.eos_export == [EOS]
    record = json.loads((exported.folder / exporting.RECORD).read_text())
    assert record["verified"] is True and record["max_dlogit"] == found.max_dlogit
    names = {file.name for file in exported.folder.iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"}
    assert exporting.MARKER not in names
    assert [f.name for f in exported.folder.parent.iterdir()] == ["merged"]


def test_the_model_of_the_run_is_gone_before_the_export_is_loaded(
    run, plugins, tmp_path, monkeypatch
):
    opened, alive = [], []

    def noting(*args):
        reader = open_run_model(*args)
        opened.append(weakref.ref(reader.model.get_base_model()))
        return reader

    monkeypatch.setattr("fasttune.exports.opening.open_run_model", noting)
    merged = plugins.exporters["merged"][0]
    load = merged.open
    monkeypatch.setattr(
        type(merged),
        "open",
        lambda self, job: alive.append(opened[0]() is not None) or load(job),
    )
    gc.disable()  # what frees memory by chance
    try:
        export(run, "merged", plugins, tmp_path / "merged")
    finally:
        gc.enable()
    assert alive == [False]


# Verification must be able to fail. Each case damages a copy of a good export.


@pytest.fixture
def damaged(exported, tmp_path) -> Path:
    return shutil.copytree(exported.folder, tmp_path / "damaged")


def verification(folder: Path, expected, run: Run, plugins):
    rows, measured = expected
    job = RunExport(run, run.template(plugins), folder, {})
    return judge(measured, measure(job.open_merged(folder), rows, measured), EXACT)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.dense.weight",
        "model.layers.1.mlp.fc2.weight",
        "model.layers.0.input_layernorm.weight",
        "lm_head.weight",
    ],
)
def test_a_flipped_sign_in_one_tensor_is_caught(damaged, expected, run, plugins, name):
    tensors = load_file(damaged / "model.safetensors")
    tensors[name] = -tensors[name]
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    found = verification(damaged, expected, run, plugins)
    assert not found.verified
    assert any("Δlogit" in failure for failure in found.failures)


@pytest.mark.parametrize("shifted", ["<|instruction|>\\n", "\\n<|reasoning|>\\n"])
def test_a_newline_shifted_in_the_chat_template_is_caught(damaged, expected, run, plugins, shifted):
    file = damaged / "chat_template.jinja"
    jinja = file.read_text(encoding="utf-8")
    tag = shifted.replace("\\n", "")
    assert tag in jinja
    file.write_text(jinja.replace(tag, shifted.replace("\\n", "\n"), 1), encoding="utf-8")
    found = verification(damaged, expected, run, plugins)
    assert not found.verified
    assert found.prompts_equal == 0
    assert "prompt ids differ from position" in found.failures[0]


def test_a_newline_shifted_in_the_template_is_caught(run, expected):
    rows, measured = expected
    template = run.template(load_plugins())
    instruction = given("instruction", "<|instruction|>\n{instruction}\n")
    parts = [p if p.section != "instruction" else instruction for p in template.parts]
    shifted = Template(name="shifted", system=template.system, parts=parts)
    reader = open_run_model(run.model_config, run.adapter, shifted)
    assert judge(measured, measure(reader, rows, measured), EXACT).prompts_equal == 0


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("generation_config.json", "eos_token_id"),
        ("config.json", "eos_token_id"),
        ("tokenizer_config.json", "eos_token"),
    ],
)
def test_a_dropped_eos_is_caught(damaged, expected, run, plugins, file, key):
    values = json.loads((damaged / file).read_text(encoding="utf-8"))
    del values[key]
    (damaged / file).write_text(json.dumps(values), encoding="utf-8")
    found = verification(damaged, expected, run, plugins)
    assert not found.verified
    assert found.eos_export == []
    assert any("stops at no id" in failure for failure in found.failures)


def test_a_generation_config_that_changes_the_answer_is_caught(damaged, expected, run, plugins):
    file = damaged / "generation_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(values | {"repetition_penalty": 5.0}), encoding="utf-8")
    found = verification(damaged, expected, run, plugins)
    assert not found.verified
    assert found.greedy_equal < found.greedy


def sides(answer=(5, 6), lead=1.0, other=(5, 6), prompt=(1, 2), eos=(9,)):
    """Two sides with the same logits, in which token 6 leads token 7 by `lead`."""
    logits = np.zeros((4, 10), np.float32)
    logits[2, 6] = 3.0
    logits[2, 7] = 3.0 - lead
    old = Measured([1, 2], list(answer), logits, {9})
    return [old], [Measured(list(prompt), list(other), logits, set(eos))]


@pytest.mark.parametrize(
    ("case", "failure"),
    [
        ({}, None),
        ({"other": (5, 7), "lead": 1e-4}, None),  # a tie within the bound
        ({"other": (5, 7)}, "token 2 of the answer is 7"),
        ({"other": (5,)}, "only the run goes on"),
        ({"other": (5, 6, 3)}, "only the export goes on"),
        ({"prompt": (1, 3)}, "differ from position 1"),
        ({"eos": (9, 8)}, "stops at"),
        ({"eos": ()}, "stops at no id"),
    ],
)
def test_judge(case, failure):
    found = judge(*sides(**case), EXACT)
    assert found.verified is (failure is None)
    assert failure is None or failure in found.failures[0]


def test_nan_and_another_vocabulary_fail():
    [old], [new] = sides()
    broken = dataclasses.replace(new, logits=np.full_like(new.logits, np.nan))
    assert not judge([old], [broken], Bounds(logits=None, kl=1.0)).verified
    short = dataclasses.replace(new, logits=new.logits[:, :-1])
    assert not judge([old], [short], QUANTISED).verified


def test_kl_divergence_is_in_nats():
    p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    exact = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert kl_divergence(p + 7, q - 3) == pytest.approx(exact)


def test_nf4_both_ways(make_run, plugins, tmp_path):
    run = make_run("nf4", quantization="nf4")
    dequantized = export(run, "merged", plugins, tmp_path / "d", options={"into": "dequantized"})
    assert dequantized.verification.bounds == EXACT
    assert dequantized.verification.verified, dequantized.verification
    original = export(run, "merged", plugins, tmp_path / "o").verification
    assert original.bounds == QUANTISED
    assert original.verified
    assert original.mean_kl > 100 * dequantized.verification.mean_kl


def test_adapter_is_the_runs_own(run, plugins, tmp_path):
    done = export(run, "adapter", plugins, tmp_path / "adapter")
    assert done.verification.verified
    assert done.verification.max_dlogit == 0
    weights = "adapter_model.safetensors"
    assert (done.folder / weights).read_bytes() == (run.adapter / weights).read_bytes()
    for name, changed in (
        ("adapter_config.json", {"base_model_name_or_path": "local-model"}),
        ("template.json", {"path": "reasoning.py"}),
    ):
        own, theirs = (json.loads((at / name).read_text()) for at in (run.adapter, done.folder))
        assert theirs == own | changed != own
    assert not (done.folder / "config.json").exists()


@pytest.mark.parametrize("known", ["cache", "config", "option"])
def test_an_adapter_names_its_base_as_the_hub_knows_it(run, plugins, tmp_path, monkeypatch, known):
    named, base = "owner/some-model", run.manifest["model"]
    place = tmp_path / ("models--owner--some-model/snapshots/abc" if known == "cache" else "mine")
    shutil.copytree(base, place)
    if known == "config":
        settings = json.loads((place / "config.json").read_text()) | {"_name_or_path": named}
        (place / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(type(run), "manifest", {**run.manifest, "model": str(place)})
    options = {"base": named} if known == "option" else {}
    done = export(run, "adapter", plugins, tmp_path / "out", options=options, verify=False)
    settings = json.loads((done.folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == named
    assert f'base_model: "{named}"' in (done.folder / "README.md").read_text()


def test_a_template_that_is_no_chat_template_is_exported_without(
    run, tmp_path, monkeypatch, caplog
):
    def refuse(*args):
        raise FasttuneError("it counts the words")

    monkeypatch.setattr("fasttune.formats.jinja.chat_template", refuse)
    with listening() as said:
        done = export(run, "merged", load_plugins(), tmp_path / "m")
    assert "without a chat template: it counts the words" in said
    assert done.verification.verified
    assert not (done.folder / "chat_template.jinja").exists()


def test_the_card_works_in_a_process_without_fasttune(exported, run, plugins):
    """The code of the card, as a reader of it would run it, gives the run's greedy answer."""
    card = (exported.folder / "README.md").read_text(encoding="utf-8")
    assert "base model: local-model" in card and 'license: "mit"' in card
    assert "tiny-phi-2" not in card and run.name not in card and "rows.jsonl" not in card
    assert (
        run.manifest["data"]["train_sha256"] in card
        and run.manifest["template"]["identity"] in card
    )
    assert "Answer in one word." in card and "Verified against the run" in card
    assert "| held-out loss | 2.5000 | 1.5000 | lower |" in card
    assert str(run.folder.parent) not in card
    assert "input='Mount Fuji, 3,776 m high" in card and "leave it out if your" in card
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("max_new_tokens=256", "max_new_tokens=32")
    code += "\nimport sys\nassert not {'fasttune', 'unsloth'} & set(sys.modules)\n"
    # The byte tokenizer's text of a random model cannot be printed everywhere; its ids can.
    code = re.sub(
        r"print\(tokenizer\.decode\((.*), skip_special_tokens=True\)\)", r"print(\1.tolist())", code
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=exported.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    job = RunExport(run, run.template(plugins), exported.folder, {})
    reader = open_run_model(run.model_config, run.adapter, job.template)
    ids = reader.prompt_ids(job.example_row())
    assert json.loads(done.stdout.splitlines()[-1]) == reader.greedy(ids, 32)


def test_licences(tmp_path):
    assert base_licence("microsoft/phi-2") == "mit"
    assert base_licence("HuggingFaceTB/SmolLM2-135M-Instruct") == "apache-2.0"
    assert base_licence("someone/model") == "see the base model"
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: gemma\n---\n# A model\n")
    assert base_licence(str(tmp_path)) == "gemma"


# Plugins of the kind a person would write; they need no model.

TAMPERING = """
from fasttune import hookimpl
from fasttune_plugins.merged import Merged

class Tampering(Merged):
    name = "tampering"

    def write(self, job):
        super().write(job)
        import json
        file = job.folder / "generation_config.json"
        file.write_text(json.dumps({"eos_token_id": 3}))

@hookimpl
def register_exporters():
    return [Tampering()]
"""

SLOW = """
import time
from fasttune import Exporter, hookimpl

class Slow(Exporter):
    name = "slow"
    options = {"quant": ("f32", "f16")}

    def write(self, job):
        (job.folder / "half.bin").write_bytes(b"half")
        print("writing", flush=True)
        time.sleep(60)

class Quick(Exporter):
    name = "quick"

    def write(self, job):
        (job.folder / "whole.bin").write_bytes(b"whole")

@hookimpl
def register_exporters():
    return [Slow(), Quick()]
"""


@pytest.fixture
def plugins_dir(tmp_path) -> Path:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "slow.py").write_text(SLOW)
    (folder / "tampering.py").write_text(TAMPERING)
    return folder


def test_a_failed_export_is_kept_and_marked(run, tmp_path, plugins_dir, capsys):
    target = tmp_path / "out"
    arguments = ["--to", "tampering", "-o", target, "--rows", 1, "--plugins-dir", plugins_dir]
    assert cli("export", run.folder, *arguments).status == 1
    printed = capsys.readouterr().out
    assert "NOT verified" in printed and "stops at" in printed
    record = json.loads((target / exporting.RECORD).read_text())
    assert (record["verified"], record["status"]) == (False, "failed")
    assert "stops at no id" in (target / exporting.MARKER).read_text()
    assert "failed verification" in (target / "README.md").read_text(encoding="utf-8")


def test_an_export_that_cannot_be_opened_is_kept_and_marked(
    run, tmp_path, plugins_dir, monkeypatch, capsys
):
    def closed(self, folder):
        raise FasttuneError("no program here opens it", str(folder), "install one")

    monkeypatch.setattr(RunExport, "open_merged", closed)
    assert cli("export", run.folder, "-o", tmp_path / "out", "--rows", "1").status == 0
    printed = capsys.readouterr()
    assert "NOT verified: no program here opens it" in printed.out
    assert "the export is not verified: no program here opens it" in printed.err
    record = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert record["verified"] is False and "install one" in record["reason"]
    assert record["reason"].splitlines()[1] == str(tmp_path / "out")
    assert "no program here" in (tmp_path / "out" / "UNVERIFIED").read_text()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_killed_export_leaves_nothing_under_its_name(run, tmp_path, plugins_dir, capsys):
    target = tmp_path / "out"
    options = ["-o", target, "--no-verify", "--plugins-dir", plugins_dir]
    arguments = ["export", run.folder, "--to", "slow", *options]
    process = subprocess.Popen(
        [sys.executable, "-c", "from fasttune.cli import main; main()", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "writing\n" in process.stderr
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    [left] = tmp_path.glob(".out.*.tmp")
    assert cli("export", run.folder, "--to", "quick", *options).status == 0
    assert (target / "whole.bin").is_file() and not (target / "half.bin").exists()
    assert str(left) in capsys.readouterr().err


def test_an_existing_folder_is_safe(run, tmp_path, plugins_dir):
    plugins = load_plugins(plugins_dir)
    target = tmp_path / "out"
    first = export(run, "quick", plugins, target, verify=False)
    assert first.as_dict() == {"verified": False, "status": "not run"}
    assert "not verified" in (target / "README.md").read_text(encoding="utf-8")
    with pytest.raises(FasttuneError, match="the folder exists"):
        export(run, "quick", plugins, target, verify=False)
    (target / "whole.bin").touch()
    export(run, "quick", plugins, target, verify=False, force=True)
    assert {file.name for file in target.iterdir()} == {
        "README.md", "SHA256SUMS", "verification.json", "whole.bin",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"plugins", "out"}


def forged(folder: Path) -> None:
    """A folder of the user's own that looks like an export."""
    folder.mkdir(exist_ok=True)
    (folder / exporting.RECORD).write_text('{"verified": true}')
    seal(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda out: (out / "thesis.tex").touch(), "contains files that fasttune did not write"),
        (lambda out: forged(out / "notes"), "fasttune did not write"),
        (lambda out: (out / "README.md").write_text("mine"), "README.md is not what was written"),
        (lambda out: (out / "SHA256SUMS").unlink(), "is not an export"),
        (lambda out: (out / "link").symlink_to(out.parent), "contains a symbolic link"),
        (lambda out: (out / "dangling").symlink_to("gone"), "contains a symbolic link"),
        (lambda out: shutil.rmtree(out) or forged(out), "is not an export"),
        (lambda out: (out / "SHA256SUMS").write_text(""), "SHA256SUMS is empty"),
        (lambda out: out.rename(out.parent / "a") and out.symlink_to("a"), "not a folder"),
        (lambda out: shutil.rmtree(out) or out.symlink_to("gone"), "not a folder"),
    ],
)
def test_only_an_export_as_fasttune_wrote_it_is_replaced(run, tmp_path, plugins_dir, change, why):
    plugins, target = load_plugins(plugins_dir), tmp_path / "out"
    export(run, "quick", plugins, target, verify=False)
    change(target)
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises(FasttuneError) as caught:
        export(run, "quick", plugins, target, verify=False, force=True)
    assert why in caught.value.message
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_run_with_a_link_is_not_exported(make_run, plugins_dir, tmp_path):
    run, plugins = make_run("linked"), load_plugins(plugins_dir)
    (tmp_path / "elsewhere").mkdir()
    (run.folder / "exports").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FasttuneError, match="contains a symbolic link"):
        export(run, "quick", plugins, verify=False)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_two_exports_of_a_run_at_once(run, tmp_path, plugins_dir, monkeypatch):
    """The second is refused, and the first is whole."""
    plugins, target = load_plugins(plugins_dir), tmp_path / "out"
    quick = type(plugins.exporters["quick"][0])
    write, refused = quick.write, []

    def write_twice(self, job):
        with pytest.raises(FasttuneError, match="another process is writing") as caught:
            export(run, "quick", plugins, target, verify=False, force=True)
        refused.append(caught.value)
        write(self, job)

    monkeypatch.setattr(quick, "write", write_twice)
    done = export(run, "quick", plugins, target, verify=False)
    assert len(refused) == 1 and (done.folder / "whole.bin").is_file()
    assert not list(tmp_path.glob(".out*"))


def test_the_default_folder_is_in_the_run(run, plugins_dir):
    done = export(run, "quick", load_plugins(plugins_dir), verify=False, force=True)
    assert done.folder == run.folder / "exports" / "quick"


def test_a_full_disk_is_one_clear_error(run, plugins, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(FasttuneError, match="no room") as caught:
            export(run, "merged", plugins, tmp_path / "out", verify=False)
    assert "are free" in caught.value.where

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(FasttuneError, match="no room"):
        export(run, "merged", plugins, tmp_path / "out", verify=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("merged", {"into": "dequantized"}, "not quantised"),
        ("merged", {"into": "both"}, "--into is 'both'"),
        ("adapter", {"into": "original"}, "takes no --into"),
        ("merge", {}, "no exporter is called 'merge'"),
    ],
)
def test_wrong_wishes_are_refused(run, plugins, tmp_path, name, options, message):
    with pytest.raises(FasttuneError, match=message):
        export(run, name, plugins, tmp_path / "out", options=options, verify=False)
    assert not (tmp_path / "out").exists()


def test_the_rows_to_verify_with_are_those_that_the_run_keeps(run, plugins):
    assert not Path(run.manifest["data"]["source"]).exists()
    rows = exporting.verification_rows(run, run.template(plugins), 2)
    assert [row["instruction"] for row in rows] == ["Add 0 and 0.", "Add 4 and 4."]


def test_a_run_that_holds_no_rows_out_is_verified_with_made_up_prompts(
    make_run, plugins, tmp_path, caplog
):
    run = make_run("bare", held=0)
    assert not (run.folder / "heldout.jsonl").exists()
    with listening() as said:
        done = export(run, "adapter", plugins, tmp_path / "out", rows=2)
    assert said[0] == "the run holds no rows out: verifying with made-up prompts"
    assert done.verification.verified and done.verification.rows == 2
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    assert "Verified against the run on 2 made-up prompts." in card
    assert "held-out prompts" not in card


def test_damaged_held_out_rows_are_one_error_and_nothing_is_written(make_run, tmp_path):
    run = make_run("damaged")
    file, target = run.folder / "heldout.jsonl", tmp_path / "out"
    file.write_text(file.read_text().replace("Add 7", "Add 8"))
    ended = cli("export", run.folder, "-o", target)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        "error: the run's held-out rows are missing or damaged",
        f"  where: {file}",
        "  what to do: restore the file",
    ]
    assert not target.exists()
    assert cli("export", run.folder, "--to", "adapter", "-o", target, "--no-verify").status == 0


def test_the_end_of_a_formats_turns_goes_along(make_run, plugins, tmp_path):
    """The run's format is in no plugin here; its end is neither the base's EOS nor its config's."""
    parts = [given("question", "Q: {instruction}\n"), learn("response", "A: {output}")]
    run = make_run("ended", declared=Template(name="ended", end="<end>", parts=parts))
    done = export(run, "merged", plugins, tmp_path / "merged")
    assert done.verification.verified, done.verification
    assert done.verification.eos_run == done.verification.eos_export == [END]
    for file in ("config.json", "generation_config.json"):
        assert json.loads((done.folder / file).read_text())["eos_token_id"] == END
    assert saved_tokenizer(done.folder).eos_token_id == END
    jinja = (done.folder / "chat_template.jinja").read_text()
    assert "eos_token" in jinja and "<end>" not in jinja


def test_list(plugins_dir, capsys):
    assert cli("export", "--list", "--json", "--plugins-dir", plugins_dir).status == 0
    listed = {form["name"]: form for form in json.loads(capsys.readouterr().out)}
    assert listed["merged"]["options"] == {"into": ["original", "dequantized"]}
    assert listed["slow"]["plugin"] == "slow"
    assert cli("export", "--list").status == 0
    assert "--into original|dequantized" in capsys.readouterr().out
    assert cli("export").status == 2
