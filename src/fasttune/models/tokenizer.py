"""Loading a tokenizer without loading a model."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from fasttune import hub
from fasttune.errors import FasttuneError, reason
from fasttune.machine import tensor_device
from fasttune.models.demo import demo_model
from fasttune.models.whole import require_whole

log = logging.getLogger(__name__)

CUDA_DEFAULT = "microsoft/phi-2"


def resolve_model(name: str | None) -> str:
    """The model to load: `name` itself, or the default of this machine.

    The default is microsoft/phi-2 where torch sees CUDA, and the demo model elsewhere.

    Raises:
        FasttuneError: no name, no CUDA and no demo model; or `name` is a folder without a
            config.json, or neither a folder nor a name that the Hub could know.
    """
    if name is None:
        return CUDA_DEFAULT if tensor_device() == "cuda" else str(demo_model())
    folder = Path(name)
    if not name.strip() or (not folder.is_dir() and not hub.may_know(name)):
        raise FasttuneError(
            "there is no such model folder",
            name if name.strip() else "an empty name",
            "check the path, or give a name of the Hub, as microsoft/phi-2",
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FasttuneError(
            "the folder holds no model",
            f"{folder}: no config.json",
            "give a folder that transformers loads",
        )
    return name


def load_tokenizer(name: str | None, end: str = "") -> Any:
    """The fast tokenizer of a model name or folder; None stands for the default model.

    Args:
        end: see `end_turns_with`.

    Raises:
        FasttuneError: it cannot be loaded, or does not know `end`.
    """
    model = resolve_model(name)
    require_model(model)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers and huggingface_hub have their own
        raise cannot_load(model, error) from error
    return end_turns_with(tokenizer, end)


def end_turns_with(tokenizer: Any, end: str) -> Any:
    """The tokenizer with a format's own end of turn as its EOS: so it is appended and trained, it
    stops generation, and exports and other programs stop at it.

    Args:
        end: a token's text, or "" to keep the tokenizer's EOS.

    Raises:
        FasttuneError: the tokenizer has no such token.
    """
    if end:
        token = tokenizer.convert_tokens_to_ids(end)
        if tokenizer(end, add_special_tokens=False).input_ids != [token]:
            raise FasttuneError(
                f"the format ends a turn with '{end}', which is not a token of the model",
                str(getattr(tokenizer, "name_or_path", "")),
                "choose a model that has this token, or leave `end` out of the format: its EOS "
                "then ends a turn",
            )
        tokenizer.eos_token = end
    return tokenizer


def require_model(model: str) -> None:
    """Refuse a model (or an adapter's folder) that only the Hub has where it cannot be asked, that
    is damaged, or that wants its own code to be run, before anything is imported that takes long.

    Raises:
        FasttuneError: the Hub cannot be reached, and its cache holds nothing of the model; or see
            `require_whole` and `require_no_code`.
    """
    if hub.reach(model) and not hub.in_cache(model):
        raise not_in_cache(model)
    if Path(model).is_dir():
        require_whole(Path(model))
    require_no_code(model)


def require_no_code(model: str) -> None:
    """Refuse a model or tokenizer that transformers could only load by running Python code that
    comes with it. Such code is never run; where transformers has the architecture itself, the
    model's own version of it is left aside.

    Raises:
        FasttuneError: its files have an `auto_map` that transformers cannot do without.
    """
    for name in ("config.json", "tokenizer_config.json"):
        file = Path(model) / name if Path(model).is_dir() else hub.file(model, name)
        try:
            settings = json.loads(file.read_text(encoding="utf-8")) if file else {}
        except (OSError, ValueError, RecursionError):
            continue  # who loads it tells what is wrong with it
        if not isinstance(settings, dict) or not settings.get("auto_map"):
            continue
        if name == "config.json" and _architecture_known(settings.get("model_type")):
            log.info("the code that comes with %s is not run: transformers has its own", model)
            continue
        raise FasttuneError(
            f"the model '{model}' wants its own code to be run, which fasttune never does",
            f"{file}: auto_map",
            "take a model of an architecture that transformers has itself, and a tokenizer.json",
        )


def _architecture_known(model_type: object) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def not_in_cache(model: str) -> FasttuneError:
    """The error for a model that only the Hub could give, which is not asked."""
    return FasttuneError(
        f"cannot load the model '{model}'",
        f"{hub.why_offline()}, and the Hub's cache does not hold the model",
        "give a local folder, or a Hub name while the Hub can be reached",
    )


def cannot_load(model: str, error: Exception) -> FasttuneError:
    """The error for a model or tokenizer that transformers or Unsloth does not load: with what they
    say in one line, and what to do about it where that is known."""
    if hub.lacks(model, error):
        return not_in_cache(model)
    said = str(error)
    # Unsloth tries the folder as a model and as an adapter; what it says of the model counts.
    told = re.search(r"^AutoConfig error: *(\S.*)", said, re.M)
    cause = (told[1] if told else reason(error)).removeprefix("Unsloth: ")
    words = next((words for pattern, words in WORDS if re.search(pattern, said)), None)
    if words:
        cause = words
    elif not isinstance(error, (OSError, ValueError, RuntimeError, ImportError)):
        cause = f"{type(error).__name__}: {cause}"
    known = (hint for pattern, hint in HINTS if re.search(pattern, said, re.I))
    return FasttuneError(f"cannot load the model '{model}'", cause, next(known, _hint(error)))


WORDS = (
    (
        "ignore_mismatched_sizes|size mismatch",
        "the shapes of its tensors are not those that its settings, or the base, give",
    ),
    (
        "Weights only load failed|weights_only",
        "one of its files is a pickle that holds more than tensors; it could run code, and is not "
        "loaded",
    ),
)
"""What libraries have no plain words for, by a pattern in theirs."""
HINTS = (
    ("ignore_mismatched_sizes|size mismatch", "take weights and settings of one model"),
    ("Weights only load failed|weights_only", "take a model in safetensors"),
    (
        "trust_remote_code",
        "its own code is never run: take a model that transformers has the architecture of",
    ),
    ("out of memory", "take what `fasttune plan` says fits, or end what else uses the GPU"),
    (
        "this architecture|configuration class|not supported yet in .transformers|"
        "unrecognized model|unsupported architecture|architecture .*not supported",
        "take a causal language model that the installed transformers knows, such as a Phi or a "
        "Llama; for a newer one, pip install --upgrade transformers",
    ),
    (
        "pip install|no module named|package metadata|is not installed",
        "install or upgrade the library it names; `fasttune doctor` checks those training needs",
    ),
    (
        r"need a gpu|no (nvidia |cuda )?(gpus?\b|driver)|compiled with cuda|torch accelerator|"
        "cuda error",
        "`fasttune doctor` says what keeps torch from the GPU; a CPU takes model.quantization=none",
    ),
)
"""What to do, by a pattern in what transformers, Unsloth and torch say; the first counts."""


def _hint(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "`fasttune doctor` checks the libraries that training needs"
    if isinstance(error, (OSError, ValueError)):
        return "give a local folder, or a Hub name while the Hub can be reached"
    return "see whether its files are whole; --traceback shows where it failed"
