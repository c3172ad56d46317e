"""The same by transformers and PEFT alone, in fp32 and row by row.

    reference.py MODEL FOLDER < WORK

WORK is {"steps": [N, ...], "answers": [{"adapter", "prompts", "tokens"}, ...]}. For every step that
step.py took the folder gets N.reference.safetensors, and greedy answers are printed as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORED = -100
EOS = 50256


def under(kind, tensors):
    """The tensors whose names begin with a word, without it."""
    return {
        name.removeprefix(f"{kind} "): each
        for name, each in tensors.items()
        if name.startswith(f"{kind} ")
    }


def gradients(model_folder, place):
    tensors = load_file(place.with_suffix(".safetensors"))
    facts = json.loads(place.with_suffix(".rows.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=getattr(torch, facts["dtype"]))
    base = base.float()  # with the weights as the run had rounded them
    lora, weights = under("lora", tensors), under("base", tensors)
    settings = LoraConfig(
        r=next(each.shape[0] for name, each in lora.items() if "lora_A" in name),
        lora_alpha=facts["alpha"],
        target_modules=sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in lora}),
    )
    model = get_peft_model(base, settings).eval()  # without dropout
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module = name.removesuffix(".weight")
            if name in lora:
                parameter.copy_(lora.pop(name))
            elif module in weights:
                parameter.copy_(weights.pop(module))
    assert not lora and not weights
    total = torch.zeros(())
    for row in facts["rows"]:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"])[1:]
        total = total + cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    loss = total / sum(label != IGNORED for row in facts["rows"] for label in row["labels"])
    loss.backward()
    found = {f"gradient {name}": p.grad for name, p in model.named_parameters() if p.requires_grad}
    save_file({"loss": loss.detach(), **found}, place.with_suffix(".reference.safetensors"))


def answers(model_folder, adapter, prompts, tokens):
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=tokens, eos_token_id=EOS, pad_token_id=EOS,
        )  # fmt: skip
        new = output[0, ids.shape[1] :].tolist()
        kept = new[: new.index(EOS)] if EOS in new else new
        yield tokenizer.decode(kept, clean_up_tokenization_spaces=False)


if __name__ == "__main__":
    _, model_folder, folder = sys.argv
    work = json.load(sys.stdin)
    for number in work["steps"]:
        gradients(model_folder, Path(folder) / str(number))
    print(json.dumps([[*answers(model_folder, **each)] for each in work["answers"]]))
    assert "unsloth" not in sys.modules
