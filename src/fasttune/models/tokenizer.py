"""Loading a tokenizer without loading a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fasttune import hub
from fasttune.errors import FasttuneError, reason
from fasttune.machine import tensor_device
from fasttune.models.demo import demo_model

CUDA_DEFAULT = "microsoft/phi-2"


def resolve_model(name: str | None) -> str:
    """The model to load: `name` itself, or the default of this machine.

    The default is microsoft/phi-2 where torch sees CUDA, and the demo model elsewhere.

    Raises:
        FasttuneError: no name, no CUDA and no demo model; or `name` is a folder without a
            config.json.
    """
    if name is None:
        return CUDA_DEFAULT if tensor_device() == "cuda" else str(demo_model())
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FasttuneError(
            "the folder holds no model",
            f"{folder}: no config.json",
            "give a folder that transformers loads",
        )
    return name


def load_tokenizer(name: str | None) -> Any:
    """The fast tokenizer of a model name or folder; None stands for the default model.

    Raises:
        FasttuneError: it cannot be loaded.
    """
    model = resolve_model(name)
    require_model(model)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # transformers, tokenizers and huggingface_hub have their own
        raise cannot_load(model, error) from error
    return tokenizer


def require_model(model: str) -> None:
    """Refuse a model that only the Hub has where it cannot be asked, before anything is imported
    that takes long.

    Raises:
        FasttuneError: the Hub cannot be reached, and its cache holds nothing of the model.
    """
    if hub.reach(model) and not hub.in_cache(model):
        raise not_in_cache(model)


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
    if not isinstance(error, (OSError, ValueError, RuntimeError, ImportError)):
        cause = f"{type(error).__name__}: {cause}"
    known = (hint for pattern, hint in HINTS if re.search(pattern, said, re.I))
    return FasttuneError(f"cannot load the model '{model}'", cause, next(known, _hint(error)))


HINTS = (
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
