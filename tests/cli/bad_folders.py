"""Rows for the table of bad input: run folders, checkpoints, adapters and models that are damaged.

`runs/old` is a finished run of which checkpoint 2 of 4 is kept.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from fasttune.files import SEAL, seal
from tests.conftest import PHI2

Change = Callable[[Path], Any]
OLD = "runs/old"
MANIFEST, METRICS = f"{OLD}/manifest.json", f"{OLD}/metrics.jsonl"
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHECKPOINT = f"{OLD}/checkpoints/checkpoint-2"


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other(**values: object) -> Change:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without(key: str) -> Change:
    def change(path: Path) -> None:
        found = json.loads(path.read_text())
        del found[key]
        path.write_text(json.dumps(found))

    return change


def replaced(old: str, new: str) -> Change:
    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def sealed(name: str, change: Change) -> Change:
    """Seal a folder, then change a file in it."""

    def seal_and_change(folder: Path) -> None:
        seal(folder)
        change(folder / name)

    return seal_and_change


def changed(name: str, change: Change) -> Change:
    """Change a file of a folder, then seal the folder."""

    def change_and_seal(folder: Path) -> None:
        change(folder / name)
        seal(folder)

    return change_and_seal


def without_tensor(part: str) -> Change:
    def change(path: Path) -> None:
        save_file({n: t for n, t in load_file(path).items() if part not in n}, path)

    return change


def not_finite(path: Path) -> None:
    tensors = load_file(path)
    next(iter(tensors.values())).flat[-1] = math.inf
    save_file(tensors, path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def copied(path: Path) -> None:
    shutil.copytree(Path(__file__).parents[1] / "old_run", path)


LAID: dict[str, Any] = {OLD: copied}
"""For commands that do not name the run."""
INTERRUPTED: dict[str, Any] = {MANIFEST: other(status="interrupted")}
RESUME = "run --resume old"

RUNS = [
    ("manifest: cut, show", {MANIFEST: cut}, "runs show old", 2, (MANIFEST, "is no JSON")),
    ("manifest: cut, resume", {MANIFEST: cut}, RESUME, 2, ("manifest.json is damaged",)),
    ("manifest: cut, generate", {MANIFEST: cut}, "generate old x", 2, (MANIFEST, "is no JSON")),
    ("manifest: cut, chat", {MANIFEST: cut}, "chat old", 2, (MANIFEST, "is no JSON")),
    ("manifest: cut, export", {MANIFEST: cut}, "export old", 2, (MANIFEST, "is no JSON")),
    ("manifest: cut, list", LAID | {MANIFEST: cut}, "runs list", 0, ("damaged", "old")),
    ("manifest: cut, last", {MANIFEST: cut}, "runs show last", 2, ("no run 'last'", "is no JSON")),
    ("manifest: empty", {MANIFEST: b""}, "runs show old", 2, (MANIFEST, "is empty")),
    ("manifest: a list", {MANIFEST: b"[]"}, "runs show old", 2, ("got `array`",)),
    ("manifest: a number", {MANIFEST: b"1"}, RESUME, 2, ("got `int`",)),
    ("manifest: no UTF-8", {MANIFEST: b'{"a": "\xff"}'}, "generate old x", 2, ("not UTF-8",)),
    ("manifest: a folder", {MANIFEST: into_a_folder}, "generate old x", 2, ("Is a directory",)),
    ("manifest: nested", {MANIFEST: b"[" * 99_999}, "runs show old", 2, ("is no JSON",)),
    ("manifest: no status", {MANIFEST: without("status")}, "runs show old", 2, ("`status`",)),
    ("manifest: no template", {MANIFEST: without("template")}, "chat old", 2, ("`template`",)),
    ("manifest: no dtype", {MANIFEST: without("dtype")}, "export old", 2, ("`dtype`",)),
    ("manifest: another dtype", {MANIFEST: other(dtype="int8")}, RESUME, 2, ("'int8'",)),
    ("manifest: text for seconds", {MANIFEST: other(seconds="9")}, RESUME, 2, ("$.seconds",)),
    ("manifest: a score of text", {MANIFEST: other(scores={"before": {}, "after": {"exact": "x"}})},
     "runs show old", 2, ("$.scores.after[...]",)),
    ("manifest: scores of text", {MANIFEST: other(scores="x")}, "runs show old", 2, ("$.scores",)),
    ("manifest: half of the scores", {MANIFEST: other(scores={"after": {"exact": 1}})},
     "runs show old", 0, ("exact  ", " -  ", " 1.00  ")),
    ("manifest: a config of text", {MANIFEST: other(config="x")}, "chat old", 2, ("$.config",)),
    ("manifest: a config of what is unknown", {MANIFEST: other(config={"x": 1})}, "generate old x",
     2, ("no setting 'x'", MANIFEST)),
    ("manifest: of a later fasttune", {MANIFEST: other(format=3)}, RESUME, 2, ("format 3",)),
    ("manifest: of an earlier fasttune", {MANIFEST: other(format=1)}, "generate old x", 2,
     ("the run was written by fasttune 0.1.0", "format 1; this version reads format 2")),
    ("manifest: no format", {MANIFEST: without("format")}, "export old", 2, ("format 0;",)),
    ("manifest: a template of nothing", {MANIFEST: other(template={})}, "chat old", 2, ("name",)),
    ("metrics: half a line between", {METRICS: replaced("}\n", "\n")}, "runs show old", 2,
     (f"{METRICS}, line 1", "is no JSON")),
    ("metrics: half a line between, list", LAID | {METRICS: replaced("}\n", "\n")},
     "runs list", 0, ("damaged",)),
    ("metrics: half a last line", {METRICS: lambda p: p.write_text(p.read_text()[:-9])},
     "runs show old", 0, ("held-out loss",)),
    ("metrics: no UTF-8", {METRICS: b'{"step": 1}\n\xff\n'}, "runs show old", 2, ("line 2: ",)),
    ("metrics: a loss of text", {METRICS: b'{"step": 1, "loss": "x"}\n'}, "runs show old", 2,
     ("line 1: Expected `float",)),
    ("metrics: a folder", {METRICS: into_a_folder}, "runs show old", 2, ("cannot be read",)),
    ("config.yaml: gone", {**INTERRUPTED, f"{OLD}/config.yaml": Path.unlink}, RESUME, 2,
     ("cannot read the config", "config.yaml")),
    ("config.yaml: no YAML", {**INTERRUPTED, f"{OLD}/config.yaml": "a: [\n"}, RESUME, 2,
     ("cannot read the config",)),
    ("config.yaml: edited", {MANIFEST: other(status="interrupted", config={"lora": {"r": 4}})},
     RESUME, 2, ("config.yaml has changed since the run began", "lora.r: 4 became 2", "--force")),
    ("resume: done", {}, RESUME, 2, ("run 'old' is done",)),
]  # fmt: skip

CHECKPOINTS = [
    (f"checkpoint: {name}", {**INTERRUPTED, path: change}, RESUME, 2,
     ("every checkpoint of the run is damaged", "checkpoint-2", why))
    for name, path, change, why in (
        ("no optimizer", CHECKPOINT, changed("optimizer.pt", Path.unlink), "optimizer.pt is miss"),
        ("no scheduler", CHECKPOINT, changed("scheduler.pt", Path.unlink), "scheduler.pt is miss"),
        ("no random state", CHECKPOINT, changed("rng_state.pth", Path.unlink), "is missing"),
        ("no weights", CHECKPOINT, changed(WEIGHTS, Path.unlink), f"{WEIGHTS} is missing"),
        ("a state that is cut", CHECKPOINT, changed("trainer_state.json", cut), "is no JSON"),
        ("a state of another step", CHECKPOINT, changed("trainer_state.json", other(global_step=7)),
         "is of step 7"),
        *(
            (f"a state of {values}", CHECKPOINT, changed("trainer_state.json", other(**values)),
             "trainer_state.json is damaged")
            for values in (
                {"stateful_callbacks": {"EarlyStoppingCallback": 5}},
                {"stateful_callbacks": {"TrainerControl": {}}},
                {"stateful_callbacks": []},
                {"log_history": "x"},
                {"best_metric": "x"},
                {"epoch": []},
            )
        ),
        ("a flipped bit", CHECKPOINT, sealed("optimizer.pt", flip), "is not what was written"),
        ("another alpha", CHECKPOINT, sealed(SETTINGS, other(lora_alpha=1)), "is not what was"),
        ("a seal of nothing", f"{CHECKPOINT}/{SEAL}", "", f"{SEAL} is empty"),
        ("a seal that leads out", f"{CHECKPOINT}/{SEAL}", f"{'0' * 64}  ../../../config.yaml\n",
         f"line 1 of {SEAL} is malformed"),
    )
]  # fmt: skip

ADAPTER = f"{OLD}/adapter"
ADAPTERS = [
    ("adapter: gone", {ADAPTER: shutil.rmtree}, "generate old x", 2, ("has no adapter",)),
    ("adapter: gone, export", {ADAPTER: shutil.rmtree}, "export old", 2, ("has no adapter",)),
    ("adapter: settings cut", {f"{ADAPTER}/{SETTINGS}": cut}, "generate old x", 2, ("is no JSON",)),
    ("adapter: settings cut, export", {f"{ADAPTER}/{SETTINGS}": cut}, "export old", 2,
     (SETTINGS, "is no JSON")),
    ("adapter: no rank", {f"{ADAPTER}/{SETTINGS}": without("r")}, "generate old x", 2, ("`r`",)),
    ("adapter: an alpha of text", {f"{ADAPTER}/{SETTINGS}": other(lora_alpha="1")}, "chat old", 2,
     ("$.lora_alpha",)),
    ("adapter: weights cut", {f"{ADAPTER}/{WEIGHTS}": cut}, "generate old x", 2,
     (WEIGHTS, "not a complete")),
    ("adapter: weights cut, export", {f"{ADAPTER}/{WEIGHTS}": cut}, "export old", 2,
     ("not a complete",)),
    ("adapter: a pickle", {
        f"{ADAPTER}/{WEIGHTS}": lambda path: path.rename(path.with_name("adapter_model.bin"))
    }, "generate old x", 2, ("a pickle, which can run code",)),
    ("adapter: sealed, another alpha", {ADAPTER: sealed(SETTINGS, other(lora_alpha=32))},
     "generate old x", 2, ("the adapter is damaged", SETTINGS)),
    ("adapter: sealed, a flipped bit", {ADAPTER: sealed(WEIGHTS, flip)}, "export old", 2,
     ("the adapter is damaged", WEIGHTS)),
    ("adapter: sealed, compared", {
        "runs/other": copied, ADAPTER: sealed(WEIGHTS, flip)
    }, "compare old other", 2,
     ("the adapter is damaged", WEIGHTS)),
    ("adapter: no seal where there was one", {MANIFEST: other(adapter_sha256="0" * 64)},
     "generate old x", 2, (f"{SEAL} cannot be read",)),
    *((f"adapter: lacks {factor} of a layer, {command.split()[0]}", {
        f"{ADAPTER}/{WEIGHTS}": without_tensor(f"up_proj.lora_{factor}")
    }, command, 2, ("the adapter has 0 of 1 layers up_proj", f"{ADAPTER}: lora_{factor}"))
      for factor, command in (("A", "generate old x"), ("B", "export old --no-verify"))),
    ("adapter: NaN", {f"{ADAPTER}/{WEIGHTS}": not_finite}, "generate old x", 2,
     ("the weights contain NaN or infinity", f"{ADAPTER}/{WEIGHTS}: ")),
    ("adapter: an alpha of infinity", {f"{ADAPTER}/{SETTINGS}": other(lora_alpha=math.inf)},
     "export old", 2, ("$.lora_alpha", "<=")),
    ("adapter: given as a model", LAID, f"run -m {ADAPTER} -d rows.jsonl -t alpaca", 2,
     ("this is an adapter of a run, not a base model", f"then give {OLD}/exports/merged")),
    ("run: given as a model", {}, f"run -m {OLD} -d rows.jsonl -t alpaca", 2,
     ("this is a run, not a base model", f"`fasttune export {OLD}`")),
    ("run: its name as a model", {}, "run -m last -d rows.jsonl -t alpaca", 2,
     ("this is a run, not a base model", f"{OLD}/exports/merged")),
    ("adapter: given as a run", LAID, f"generate {ADAPTER} x", 2,
     ("this is an adapter of a run, not a run", f"give the run, {OLD}")),
    ("adapter: of another program", {f"a/{SETTINGS}": '{"base_model_name_or_path": "me/base"}'},
     "export a", 2, ("this is an adapter, not a run", "PEFT's merge_and_unload", "me/base")),
    ("adapter: a seal of no form", {f"{ADAPTER}/{SEAL}": "x\n"}, "generate old x", 2, ("line 1",)),
]  # fmt: skip


def model(**files: str | bytes | Change) -> dict[str, Any]:
    """A model folder with these files in place of good ones; a name's __ is a dot."""
    laid: dict[str, Any] = {"broken/config.json": json.dumps(PHI2), "broken/tokenizer.json": "{}"}
    return laid | {f"broken/{name.replace('__', '.')}": value for name, value in files.items()}


USE = "data rows.jsonl --model broken"
INDEX = "model__safetensors__index__json"
MODELS = [
    (f"model: {name}", model(**files), command, 2, holds)
    for name, files, command, holds in (
        ("config.json empty", {"config__json": ""}, USE, ("config.json is damaged", "is empty")),
        ("config.json cut", {"config__json": '{"model_type": "ph'}, USE, ("is no JSON",)),
        ("config.json a list", {"config__json": "[]"}, "generate broken x", ("Expected `object`",)),
        ("config.json no UTF-8", {"config__json": b'{"\xe9": 1}'}, USE, ("not UTF-8 at byte 2",)),
        ("config.json a number, plan", {"config__json": "1"}, "plan --gpu t4 --model broken",
         ("Expected `object`",)),
        *((f"config.json, {key}: {value}", {"config__json": json.dumps({**PHI2, key: value})},
           command,
           ("config.json is damaged", f"$.{key}"))
          for key, value, command in (
              ("num_hidden_layers", 10**9, "plan --gpu t4 --model broken"),
              ("num_hidden_layers", -1, "generate broken x"),
              ("num_attention_heads", 0, "plan --gpu t4 --model broken"),
              ("vocab_size", 0, "run -t alpaca -d rows.jsonl -m broken"),
          )),
        *((f"quantised, {name}", {"config__json": json.dumps({**PHI2, "quantization_config": how})},
           f"run -t alpaca -d rows.jsonl -m broken {setting}", ("the base is stored", *holds))
          for name, how, setting, *holds in (
              ("8 bits", {"load_in_8bit": True}, "", "(8 bits)", "that it was made from"),
              ("GPTQ", {"quant_method": "gptq"}, "", "(gptq), so a run could not be exported"),
              ("FP4", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "", "(fp4)"),
              ("NF4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
               "model.quantization=none", "in NF4", "set model.quantization=nf4"),
          )),
        *((f"a length of 2049, {command}", {}, f"{command} -m broken model.max_length=2049",
           ("is 2049, and the model reads 2048 tokens", "set model.max_length=2048"))
          for command in ("run -t alpaca -d rows.jsonl", "plan --gpu t4")),
        ("no tokenizer", {"tokenizer__json": lambda _: None}, USE,
         ("cannot load the model 'broken'", "no tokenizer.json", "copy tokenizer.json and")),
        ("config.json of nothing", {"config__json": "{}"}, USE, ("cannot load the model",)),
        ("tokenizer.json cut", {"tokenizer__json": '{"model": {'}, USE, ("tokenizer.json is dam",)),
        ("tokenizer.json of nothing", {}, USE, ("cannot load the model 'broken'",)),
        ("tokenizer.json of another kind", {"tokenizer__json": '{"model": {"type": "x"}}'}, USE,
         ("cannot load the model 'broken'",)),
        ("tokenizer_config.json a list", {"tokenizer_config__json": "[1]"}, USE,
         ("tokenizer_config.json is damaged",)),
        ("weights empty", {"model__safetensors": ""}, "generate broken x", ("model.safetensors",)),
        ("weights as Git LFS gives them", {"model__safetensors": "version https://git-lfs.git"},
         "generate broken x", ("not a complete safetensors file",)),
        ("weights with another header", {"model__safetensors": b"\x02" + b"\0" * 7 + b"[]"},
         "generate broken x", ("invalid JSON in header",)),
        ("an index of what is not there", {INDEX: '{"weight_map": {"a": "a.safetensors"}}'},
         "generate broken x", ("names a.safetensors, which is missing",)),
        ("an index of nothing", {INDEX: "{}"}, "generate broken x", ("weight_map",)),
    )
]  # fmt: skip
MODELS += [
    ("model: a GGUF file", {"model.gguf": b"GGUF"}, "run -m model.gguf -d rows.jsonl -t alpaca", 2,
     ("this is a GGUF file, not a base model", "give the model that it was made from")),
    ("model: a GGUF file, generate", {"model.gguf": b"GGUF"}, "generate model.gguf x", 2,
     ("this is a GGUF file, not a run",)),
    ("model: a folder of GGUF files", {"g/model.gguf": b"GGUF"}, "plan --gpu t4 -m g", 2,
     ("this is a folder of GGUF files, not a base model",)),
]  # fmt: skip
