"""A run folder as fasttune wrote it before its modules moved into packages still works.

`old_run/` is of a Llama with a hidden width of 16, in fp32, on rows that are made here again; it
holds the checkpoint of step 2 of 4.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fasttune.models.unsloth

# isort: split
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fasttune
from fasttune.cli import main

OLD = Path(__file__).parent / "old_run"


@pytest.fixture
def old(tmp_path, monkeypatch, phi2_tokenizer):
    """The folder, with its rows and its model beside it, as it was where it was made."""
    rows = [
        {
            "instruction": f"Add {n} and {n + 1}.",
            "input": "" if n % 2 else "Two numbers.",
            "reasoning": f"{n} + {n + 1} = {2 * n + 1}.",
            "output": f"{2 * n + 1}",
        }
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=51200, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
        bos_token_id=50256, eos_token_id=50256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    phi2_tokenizer.save_pretrained(tmp_path / "model")
    folder = tmp_path / "runs" / "old"
    shutil.copytree(OLD, folder)
    phi2_tokenizer.save_pretrained(folder / "adapter")
    monkeypatch.chdir(tmp_path)
    return folder


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


def test_it_is_listed_shown_and_answers(old, capsys):
    assert command("runs", "list") == 0 and command("runs", "show", "last") == 0
    shown = capsys.readouterr().out
    assert "10.8451 -> 10.8448" in shown and "reasoning" in shown
    assert command("generate", "last", "Add 3 and 4.", "--max-new-tokens", "3") == 0
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
