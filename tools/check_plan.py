"""Compare the plan's peak memory with measured runs on this CPU.

    python tools/check_plan.py [--json] [--case NAME ...]

Each case trains two steps in a process of its own, on rows that are exactly as long as the limit,
and reads the peak of its resident memory. The models are the demo model, and a Llama and a Phi with
random weights that are made here from their configs. The last column compares what lies above the
process's own share, which the large constant would otherwise hide. Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune.models.demo import demo_model
from fasttune.planning.cost import PROCESS

ROOT = Path(__file__).parents[1]
ROWS = 16


@dataclass(frozen=True)
class Case:
    """A model and the batch it is trained on; `kind` is demo, llama or phi."""

    kind: str
    rows: int
    tokens: int
    settings: tuple[str, ...] = ()


CASES = {
    "demo-4x256": Case("demo", 4, 256),
    "llama-0.4B-2x512": Case("llama", 2, 512),
    "phi-0.3B-2x512": Case("phi", 2, 512),
    "demo-8x512": Case("demo", 8, 512),
    "phi-0.3B-2x512-nf4": Case("phi", 2, 512, ("model.quantization=nf4",)),
    "demo-8x512-checkpointing": Case("demo", 8, 512, ("train.gradient_checkpointing=on",)),
    "phi-0.3B-4x512-checkpointing": Case("phi", 4, 512, ("train.gradient_checkpointing=on",)),
    "llama-0.4B-4x512-checkpointing": Case("llama", 4, 512, ("train.gradient_checkpointing=on",)),
    "llama-0.4B-4x512-fp32": Case("llama", 4, 512, ("model.precision=fp32",)),
}


def make_model(kind: str, folder: Path) -> None:
    """Random weights in bf16, 0.44 B (llama) or 0.34 B (phi) parameters; the demo's tokenizer."""
    import torch
    from transformers import (
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        PhiConfig,
        PhiForCausalLM,
    )

    shared = {"vocab_size": 49152, "max_position_embeddings": 2048, "dtype": "bfloat16"}
    torch.set_default_dtype(torch.bfloat16)
    model = (
        LlamaForCausalLM(
            LlamaConfig(
                hidden_size=1536, intermediate_size=4096, num_hidden_layers=12,
                num_attention_heads=12, num_key_value_heads=4, **shared,
            )
        )
        if kind == "llama"
        else PhiForCausalLM(
            PhiConfig(
                hidden_size=1280, intermediate_size=5120, num_hidden_layers=11,
                num_attention_heads=16, partial_rotary_factor=0.4, **shared,
            )
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(folder)


def measure(case: Case, model: Path, folder: Path) -> dict[str, Any]:
    """Train two steps and return the manifest.

    Raises:
        RuntimeError: the run failed.
    """
    data = folder / "rows.jsonl"
    words = " ".join(f"word {number % 97}" for number in range(case.tokens))
    lines = (json.dumps({"instruction": f"Write {n}.", "output": words}) for n in range(ROWS))
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = (
        f"model.max_length={case.tokens}", f"train.batch_size={case.rows}", "train.max_steps=2",
        "data.overlong=truncate", "data.eval_fraction=0", "samples.count=0", "train.save_steps=99",
        *case.settings,
    )  # fmt: skip
    done = subprocess.run(
        [
            sys.executable, "-c", "from fasttune.cli import main; main()", "run", "--json",
            "--template", "alpaca", "--data", str(data), "--model", str(model),
            "--output", str(folder / "runs"), *settings,
        ],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout[done.stdout.index("{") :]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=[*CASES], action="append")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        models = {"demo": demo_model()}
        for name in chosen.case or CASES:
            case = CASES[name]
            if case.kind not in models:
                models[case.kind] = Path(temporary) / case.kind
                code = "import sys, check_plan as c; c.make_model(sys.argv[1], c.Path(sys.argv[2]))"
                subprocess.run(
                    [sys.executable, "-c", code, case.kind, str(models[case.kind])],
                    check=True,
                    cwd=ROOT / "tools",
                )
            folder = Path(temporary) / name
            folder.mkdir()
            manifest = measure(case, models[case.kind], folder)
            predicted, peak = manifest["planned_memory_bytes"], manifest["peak_memory_bytes"]
            own = PROCESS["cpu"]
            results.append(
                {
                    "case": name,
                    "predicted_bytes": predicted,
                    "measured_bytes": peak,
                    "ratio": round(predicted / peak, 3),
                    "ratio_above_process": round((predicted - own) / (peak - own), 3),
                }
            )
            if not chosen.json:
                line = results[-1]
                print(
                    f"{name:<26} predicted {predicted / 1e9:5.2f} GB  measured {peak / 1e9:5.2f} "
                    f"GB  ratio {line['ratio']:.2f}  above the process "
                    f"{line['ratio_above_process']:.2f}",
                    flush=True,
                )
    if chosen.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
