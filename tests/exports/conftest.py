"""A run folder as training leaves it, without a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fasttune.config import DataConfig, ModelConfig, RunConfig, SamplesConfig
from fasttune.data.rows import StoredRows
from fasttune.data.split import data_hash
from fasttune.formats.template import Template
from fasttune.models.tokenizer import end_turns_with
from fasttune.plugins.discovery import load_plugins
from fasttune.runs import Run, create_run
from tests.conftest import tiny_model

EOS = 256
END = 258
TARGETS = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]


def build_byte_tokenizer():
    """One token per byte, EOS, and two more special tokens: prompts of any script."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<pad>", "<end>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@pytest.fixture(scope="module")
def plugins():
    return load_plugins()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tiny_model(
        "phi",
        build_byte_tokenizer(),
        vocab_size=EOS + 8,
        intermediate_size=640,
        bos_token_id=EOS,
        eos_token_id=EOS + 1,
    )
    return folder.rename(tmp_path_factory.mktemp("models") / "tiny-phi-2")


@pytest.fixture(scope="module")
def make_run(tmp_path_factory, base, plugins):
    """Builds a run folder as training leaves it, with a random adapter.

    Its source is gone, and so is the plugin of a format that is given.
    """

    def make(
        name: str,
        quantization: str = "none",
        dtype: str = "float32",
        held: int = 8,
        declared: Template | None = None,
        **settings,
    ) -> Run:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        folder = tmp_path_factory.mktemp("runs") / name
        data = folder / "rows.jsonl"
        rows = [
            {
                "instruction": f"Add {n} and {n}.",
                "input": "",
                "reasoning": "Sum.",
                "output": f"{2 * n}",
            }
            for n in range(8)
        ]
        config = RunConfig(
            model=ModelConfig(name=str(base)),
            data=DataConfig(train=str(data), eval=str(data)),
            samples=SamplesConfig(count=0),
            output=str(folder.parent),
            **{"template": "reasoning", **settings},
        )
        template = plugins.facts(config.template)
        if declared is not None:
            own = {"name": declared.name, "identity": declared.identity, "path": "/gone/mine.py"}
            template |= own | {"declaration": declared.declaration, "plugin": "mine"}
        train, held_out = StoredRows(), StoredRows()
        for row in rows:
            train.append({**row, "instruction": row["instruction"].replace("Add", "Sum up")})
        for row in rows[:held]:
            held_out.append(row)
        facts = {
            "template": template,
            "system": config.system,
            "model": str(base),
            "quantization": quantization,
            "dtype": dtype,
            "lora": {"layers": dict.fromkeys(TARGETS, 2), "left_out": {}, "parameters": 12345},
            "data": {
                "source": str(data),
                "train_sha256": data_hash(train),
                "trained_sha256": "7" * 64,
                "heldout_sha256": data_hash(held_out),
                "train_rows": 8,
                "eval_rows": len(held_out),
                "train_tokens": 999,
            },
            "versions": {"python": "3"},
            "device": "cpu",
        }
        run = Run(create_run(config, str(base), facts, held_out, train).folder.rename(folder))
        torch.manual_seed(3)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base),
            LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM"),
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder / "adapter")
        end = declared.end if declared is not None else ""
        end_turns_with(build_byte_tokenizer(), end).save_pretrained(folder / "adapter")
        (folder / "adapter" / "template.json").write_text(json.dumps(template))
        scores = {"before": {"stops": 0.0}, "after": {"stops": 1.0}}
        run.update({"status": "done", "scores": scores, "steps": 3})
        run.log({"step": 0, "eval_loss": 2.5, "eval_loss_response": 2.25})
        run.log({"step": 3, "eval_loss": 1.5, "eval_loss_response": 1.25})
        return run

    return make
