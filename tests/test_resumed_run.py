"""A run folder that came from elsewhere answers, is exported and goes on with the same losses, and
none of its files is run.

`old_run/` is of a Llama with a hidden width of 16, in fp32; it holds its rows and the checkpoint of
step 2 of 4. An earlier fasttune logged its losses.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest
import torch

import fasttune
from fasttune.files import seal
from tests.conftest import cli, tiny_model

pytestmark = pytest.mark.slow

OLD = Path(__file__).parent / "old_run"


@pytest.fixture
def old(tmp_path, monkeypatch, phi2_tokenizer):
    """The folder with its model beside it; its rows are not there, and no plugin has its format."""
    monkeypatch.setenv("FASTTUNE_PLUGINS", "adapter,merged")
    model = tiny_model(
        "llama", phi2_tokenizer, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model.rename(tmp_path / "model")
    folder = tmp_path / "runs" / "old"
    shutil.copytree(OLD, folder)
    seal(folder / "checkpoints" / "checkpoint-2")
    phi2_tokenizer.save_pretrained(folder / "adapter")
    monkeypatch.chdir(tmp_path)
    return folder


def test_it_is_listed_shown_and_answers(old, capsys):
    assert cli("runs", "list").status == 0 and cli("runs", "show", "last").status == 0
    shown = capsys.readouterr().out
    assert "10.8451 -> 10.8448" in shown and "reasoning" in shown
    assert cli("generate", "last", "Add 3 and 4.", "--max-new-tokens", "3").status == 0
    assert "stopped" in capsys.readouterr().out


def test_its_losses_come_again_where_it_is_resumed(old):
    run = fasttune.open_run("last")
    before = [line["loss"] for line in run.metrics() if "loss" in line]
    assert len(before) == 4
    run.update({"status": "interrupted"})
    resumed = fasttune.train(run)
    assert resumed.manifest["status"] == "done"
    after = [line["loss"] for line in resumed.metrics() if "loss" in line]
    assert after[2:] == pytest.approx(before[2:], abs=1e-5) and after[:2] == before[:2]


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def wide(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({k: torch.cat([v, v], dim=1) for k, v in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("name", "damage", "why"),
    [
        (
            "optimizer.pt",
            lambda f: torch.save(Evil(f.with_name("evil")), f),
            "pickle file in it holds",
        ),
        (
            "rng_state.pth",
            lambda f: torch.save(Evil(f.with_name("evil")), f),
            "pickle file in it holds",
        ),
        ("scheduler.pt", lambda f: f.write_bytes(b"PK"), "checkpoint-2: "),
        ("adapter_model.safetensors", lambda f: f.write_bytes(b"x" * 99), "checkpoint-2: "),
        ("adapter_model.safetensors", wide, "the shapes of its tensors do not match"),
    ],
)
def test_a_checkpoint_that_was_sealed_with_its_damage_is_refused(old, name, damage, why):
    fasttune.open_run("last").update({"status": "interrupted"})
    checkpoint = old / "checkpoints" / "checkpoint-2"
    damage(checkpoint / name)
    seal(checkpoint)
    ended = cli("run", "--resume", "old")
    assert ended.status == 2 and "error: cannot resume from checkpoint-2" in ended.err
    assert why in ended.err and "what to do: restore it; or delete it" in ended.err
    assert not (checkpoint / "evil").exists()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:-9]), "adapter_model.safetensors: not a complete"),
        (wide, "the shapes of its tensors do not match its config.json, or the base model"),
    ],
)
def test_an_adapter_without_a_seal_that_is_damaged_is_refused(old, damage, why):
    damage(old / "adapter" / "adapter_model.safetensors")
    ended = cli("generate", "last", "Add 3 and 4.")
    assert ended.status == 2 and why in ended.err


def test_it_is_exported_and_verified(old):
    done = fasttune.export("last", rows=2)
    assert done.verification is not None and done.verification.verified
