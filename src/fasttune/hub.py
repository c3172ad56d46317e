"""The Hugging Face Hub: probe it once in a process, and go offline if it does not answer.

Call `reach` before a library asks the Hub. Offline, as with HF_HUB_OFFLINE=1, libraries load what
the cache holds and fail at once on the rest, instead of after huggingface_hub's five retries.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from fasttune.errors import without_password

log = logging.getLogger(__name__)

SECONDS = 4.0
"""Limit of the probe. It includes looking up the host name, which has no limit of its own."""
_reason = ""
"""Why the Hub cannot be reached, once a probe has failed."""


def endpoint() -> str:
    """The Hub's address to print: HF_ENDPOINT may change it and may hold a password."""
    from huggingface_hub import constants

    return without_password(str(constants.ENDPOINT))


@cache
def problem() -> str:
    """Probe the Hub: why it cannot be reached, in a few words, or "". Any status below 500 is an
    answer: a mirror may have nothing at its root."""
    from huggingface_hub import constants, get_session

    outcomes: list[str] = []

    def ask() -> None:
        try:
            status = get_session().head(constants.ENDPOINT, timeout=SECONDS).status_code
        except Exception as error:  # the network's and the client's own
            outcomes.append(type(error).__name__)
        else:
            outcomes.append(f"answers with status {status}" if status >= 500 else "")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return outcomes[0] if outcomes else f"no answer in {SECONDS:.0f} s"


def reach(name: str) -> str:
    """Probe the Hub before a library asks it for `name`, and go offline if it does not answer.
    Return `why_offline`, or "" for a name that the Hub cannot have, such as a path."""
    global _reason
    if not may_know(name):
        return ""
    if not why_offline():
        if not problem():
            return ""
        _reason = f"the Hub cannot be reached ({endpoint()}: {problem()})"
        if in_cache(name):
            log.info("%s: its cache is used", _reason)
    go_offline()
    return why_offline()


def why_offline() -> str:
    """Why this process does not ask the Hub; "" if it does."""
    from huggingface_hub import constants

    return (_reason or "HF_HUB_OFFLINE is set") if constants.HF_HUB_OFFLINE else ""


def go_offline() -> None:
    """Set HF_HUB_OFFLINE=1 for this process, its children and the libraries already imported."""
    from huggingface_hub import constants

    # Unsloth and PEFT read the environment; transformers asks huggingface_hub.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if config := sys.modules.get("datasets.config"):
        config.HF_HUB_OFFLINE = config.HF_DATASETS_OFFLINE = True  # type: ignore[attr-defined]
    # When PEFT saves an adapter it looks up the base's vocabulary, which fasttune never changes.
    warnings.filterwarnings("ignore", message="Could not find a config file in")


def may_know(name: str) -> bool:
    """Whether the Hub may have this name: it is no local path, and of the form owner/name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def lacks(name: str, error: BaseException) -> bool:
    """Whether loading failed because this process is offline and the cache lacks `name`."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    cause: BaseException | None = error if why_offline() and may_know(name) else None
    while cause and not isinstance(cause, (LocalEntryNotFoundError, ConnectionError)):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def file(model: str, name: str) -> Path:
    """A file of a model; see `local_first`."""
    from huggingface_hub import hf_hub_download

    return local_first(hf_hub_download, model, filename=name)


def local_first(download: Callable[..., str], model: str, **wanted: Any) -> Path:
    """Run a download of huggingface_hub: from the cache, else from the Hub.

    Raises:
        OSError, ValueError: neither has it; huggingface_hub's errors are all one of these.
    """
    reach(model)
    with suppress(OSError, ValueError):
        return Path(download(model, **wanted, local_files_only=True))
    return Path(download(model, **wanted))


def local_folder(model: str) -> Path | None:
    """The folder of a model on this machine: `model` itself, or its snapshot in the cache."""
    from huggingface_hub import snapshot_download

    if Path(model).is_dir():
        return Path(model)
    with suppress(OSError, ValueError):  # the cache lacks it, or this is not a name
        return Path(snapshot_download(model, local_files_only=True))
    return None


def in_cache(model: str) -> bool:
    """Whether the cache holds anything of a model."""
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}").is_dir()


def name_of(model: str) -> str | None:
    """The name of a model on the Hub, if the path of its folder in the Hub's cache tells it, or its
    config.json."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    for part in reversed(folder.absolute().parts):
        if part.startswith("models--"):
            return "/".join(part.split("--")[1:])
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    known = isinstance(name, str) and name.count("/") == 1 and may_know(name)
    return name if known else None
