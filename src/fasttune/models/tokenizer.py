"""Loading a tokenizer without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fasttune.errors import FasttuneError
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
    from transformers import AutoTokenizer

    model = resolve_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise cannot_load(model, error) from error
    return tokenizer


def cannot_load(model: str, error: Exception) -> FasttuneError:
    """The error for a model or tokenizer that transformers does not load."""
    reason = str(error).strip().splitlines()[0]
    return FasttuneError(
        f"cannot load the model '{model}'",
        reason,
        "give a local folder, or a Hub name while the Hub can be reached",
    )
