"""Resolve a model's name, refuse a model that cannot be loaded, and load its tokenizer."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from fasttune import hub
from fasttune.errors import FasttuneError, reason
from fasttune.machine import this_device
from fasttune.models.demo import demo_model
from fasttune.models.unsloth import hide_broken_torchvision
from fasttune.models.whole import read_config, require_whole, text_config
from fasttune.runs.index import RUNS, find_run, require_other

log = logging.getLogger(__name__)

CUDA_DEFAULT = "microsoft/phi-2"


def resolve_model(name: str | None) -> str:
    """The model to load: `name`, or for None microsoft/phi-2 on CUDA and the demo model elsewhere.

    Raises:
        FasttuneError: the demo model is needed but not installed; or `name` is a folder without a
            config.json, or neither a folder nor a possible name on the Hub.
    """
    if name is None:
        return CUDA_DEFAULT if this_device().kind == "cuda" else str(demo_model())
    folder = Path(name)
    if not (folder / "config.json").is_file():
        for place in (folder, RUNS / name, *([find_run().folder] if name == "last" else [])):
            require_other(place, "a base model")
    if not name.strip() or (not folder.is_dir() and not hub.may_know(name)):
        raise FasttuneError(
            "the model folder does not exist",
            name if name.strip() else "an empty name",
            "check the path, or give a name on the Hub, for example microsoft/phi-2",
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FasttuneError(
            "the folder holds no model",
            f"{folder}: no config.json",
            "give a folder that transformers can load",
        )
    return name


def load_tokenizer(name: str | None, end: str = "") -> Any:
    """Load the fast tokenizer of a model name or folder; None is the default model. For `end`, see
    `end_turns_with`.

    Raises:
        FasttuneError: it cannot be loaded, or lacks the token `end`.
    """
    model = resolve_model(name)
    require_model(model)
    tokenizer = end_turns_with(_from_pretrained(model), end)
    if (folder := hub.local_folder(model)) and (folder / "config.json").is_file():
        rows = text_config(read_config(folder / "config.json")).get("vocab_size")
        _require_embeddings(tokenizer, rows, model)
    return tokenizer


def _require_embeddings(tokenizer: Any, rows: int | None, model: str) -> None:
    """Refuse a tokenizer whose texts could have ids beyond the model's embeddings. Special tokens
    may: Gemma 3 shares a tokenizer with models that see images."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ids = [id for id, token in added.items() if not token.special]
    highest = max(tokenizer.vocab_size - 1, tokenizer.eos_token_id or 0, *ids)
    if rows is not None and highest >= rows:
        raise FasttuneError(
            f"the tokenizer has ids up to {highest}, and the model has {rows} embeddings",
            model,
            "use the tokenizer of the same model; or resize the model with transformers' "
            "resize_token_embeddings, train those rows there, and save it",
        )


def saved_tokenizer(folder: Path) -> Any:
    """Load the tokenizer that was saved with an adapter or a merged model."""
    require_no_code(str(folder))
    return _from_pretrained(str(folder))


def _from_pretrained(model: str) -> Any:
    hide_broken_torchvision()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        if len(tokenizer) < 2:  # some classes make one of EOS alone
            raise OSError("can't load tokenizer")
        return tokenizer
    except Exception as error:  # transformers, tokenizers and huggingface_hub raise their own types
        raise cannot_load(model, error) from error


def end_turns_with(tokenizer: Any, end: str) -> Any:
    """Make a template's end of turn the tokenizer's EOS, unless it is "": it is appended and
    trained, and generation, exports and other programs stop at it. It must be a token."""
    if not end:
        return tokenizer
    token = tokenizer.convert_tokens_to_ids(end)
    if tokenizer(end, add_special_tokens=False).input_ids != [token]:
        raise FasttuneError(
            f"the template ends a turn with '{end}', which is not a token of this model",
            str(getattr(tokenizer, "name_or_path", "")),
            "choose a model with this token, or remove `end` from the template to use its EOS",
        )
    tokenizer.eos_token = end
    return tokenizer


def require_model(model: str) -> None:
    """Refuse a model, or an adapter folder, that cannot be loaded, before slow imports begin: it is
    damaged, needs code of its own, or is not in the cache while the Hub cannot be reached."""
    if hub.reach(model) and not hub.in_cache(model):
        raise not_in_cache(model)
    if Path(model).is_dir():
        require_whole(Path(model))
    require_no_code(model)


def require_no_code(model: str) -> None:
    """Refuse a model or tokenizer that needs its own Python code, which fasttune never runs. If
    transformers has the architecture itself, the code that comes with the model is ignored."""
    for name in ("config.json", "tokenizer_config.json"):
        try:
            file = Path(model) / name if Path(model).is_dir() else hub.file(model, name)
            settings = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # it has none, or loading the model reports the damage
        if not isinstance(settings, dict) or not settings.get("auto_map"):
            continue
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if name == "config.json" and settings.get("model_type") in CONFIG_MAPPING_NAMES:
            log.info("%s: its own code is not run, because transformers has this model", model)
            continue
        raise FasttuneError(
            f"the model '{model}' needs its own code, which fasttune never runs",
            f"{file}: auto_map",
            "choose a model whose architecture is part of transformers, with a tokenizer.json",
        )


def not_in_cache(model: str) -> FasttuneError:
    """The error for a model that is only on the Hub, while the Hub is not asked."""
    return FasttuneError(
        f"cannot load the model '{model}'",
        f"{hub.why_offline()}, and the Hub's cache does not hold the model",
        "give a local folder, or retry when the Hub can be reached",
    )


def cannot_load(model: str, error: Exception) -> FasttuneError:
    """The error for a model or tokenizer that a library failed to load: its own reason in one line,
    and what to do."""
    if hub.lacks(model, error):
        return not_in_cache(model)
    message = str(error)
    # Unsloth tries the folder as a model and as an adapter; the model's error is the relevant one.
    of_model = re.search(r"^AutoConfig error: *(\S.*)", message, re.M)
    cause = (of_model[1] if of_model else reason(error)).removeprefix("Unsloth: ")
    hint = "check its files for damage; --traceback shows where loading failed"
    if isinstance(error, ImportError):
        hint = "`fasttune doctor` checks the libraries that training needs"
    elif isinstance(error, (OSError, ValueError)):
        hint = "give a local folder, or a Hub name while the Hub can be reached"
    elif not isinstance(error, RuntimeError):
        cause = f"{type(error).__name__}: {cause}"
    for pattern, known_cause, known_hint in KNOWN_FAILURES:
        if re.search(pattern, message, re.I):
            cause, hint = known_cause or cause, known_hint
            break
    return FasttuneError(f"cannot load the model '{model}'", cause, hint)


KNOWN_FAILURES = (
    (
        "instantiate the backend tokenizer|can't load tokenizer",
        "it has no tokenizer: no tokenizer.json",
        "copy tokenizer.json and tokenizer_config.json from the model that it was made from",
    ),
    (
        "ignore_mismatched_sizes|size mismatch",
        "the shapes of its tensors do not match its config.json, or the base model",
        "use weights and config.json of the same model",
    ),
    (
        "Weights only load failed|weights_only",
        "a pickle file in it holds more than tensors; it could run code, so it is not loaded",
        "choose a model in safetensors",
    ),
    (
        "trust_remote_code",
        "",
        "fasttune never runs a model's own code; choose an architecture that is part of "
        "transformers",
    ),
    ("out of memory", "", "use settings that `fasttune plan` says fit, or stop other GPU programs"),
    (
        "this architecture|configuration class|not supported yet in .transformers|"
        "unrecognized model|unsupported architecture|architecture .*not supported",
        "",
        "choose a causal language model that the installed transformers knows, such as a Phi or a "
        "Llama; for a newer one, pip install --upgrade transformers",
    ),
    (
        "pip install|no module named|package metadata|is not installed",
        "",
        "install or upgrade the named library; `fasttune doctor` checks those that training needs",
    ),
    (
        r"need a gpu|no (nvidia |cuda )?(gpus?\b|driver)|compiled with cuda|torch accelerator|"
        "cuda error",
        "",
        "`fasttune doctor` says why torch does not see the GPU; to load on a CPU, set "
        "model.quantization=none",
    ),
)
"""Pattern in a library's message -> a plain cause in its place or "", and a hint; the first match
counts."""
