"""A run folder as fasttune wrote it before its modules moved into packages still works.

`old_run/` is of a Llama with a hidden width of 16, in fp32, on rows that are made here again; it
holds the checkpoint of step 2 of 4.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import fasttune.models.unsloth

# isort: split
import pytest

import fasttune
from tests.conftest import cli, rows, tiny_model, write_rows

OLD = Path(__file__).parent / "old_run"


@pytest.fixture
def old(tmp_path, monkeypatch, phi2_tokenizer):
    """The folder, with its rows and its model beside it, as it was where it was made."""
    write_rows(tmp_path / "rows.jsonl", rows(40))
    model = tiny_model(
        "llama", phi2_tokenizer, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model.rename(tmp_path / "model")
    folder = tmp_path / "runs" / "old"
    shutil.copytree(OLD, folder)
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
    (old / "before.json").write_text('[["", "length", 4]]')
    resumed = fasttune.train(run)
    assert resumed.manifest["status"] == "done"
    after = [line["loss"] for line in resumed.metrics() if "loss" in line]
    assert after[2:] == pytest.approx(before[2:], abs=1e-5) and after[:2] == before[:2]


def test_it_is_exported_and_verified(old):
    done = fasttune.export(fasttune.open_run("last"), "merged", rows=2)
    assert done.verification is not None and done.verification.verified
