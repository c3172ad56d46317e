"""The Hugging Face Hub: whether it answers, tried once in a process before a library asks it.

Without an answer the process goes offline, as with HF_HUB_OFFLINE=1: what the cache holds loads as
ever, and what it does not hold fails at once, instead of after huggingface_hub's five retries.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import warnings
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

SECONDS = 4.0
"""For the one try. Looking up a name, which has no limit of its own, is within it."""

ASKED = "HF_HUB_OFFLINE is set"

_reason = ""


def endpoint() -> str:
    """The Hub's address, which HF_ENDPOINT may change."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def is_offline() -> bool:
    """Whether nothing is asked of the Hub: by HF_HUB_OFFLINE, or because it did not answer."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@cache
def problem() -> str:
    """Why the Hub cannot be reached, in a few words; "" if it can. Tried once in a process.

    Any answer below status 500 will do: at the root of a mirror there may be nothing.
    """
    from huggingface_hub import get_session

    outcome: list[str] = []

    def ask() -> None:
        try:
            status = get_session().head(endpoint(), timeout=SECONDS).status_code
        except Exception as error:  # the network's and the client's own
            outcome.append(type(error).__name__)
        else:
            outcome.append(f"answers with status {status}" if status >= 500 else "")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS)
    return outcome[0] if outcome else f"no answer in {SECONDS:.0f} s"


def reach(name: str) -> str:
    """Try the Hub before a library asks it for `name`, and go offline if it does not answer.

    Returns: why the Hub is not asked, as `why_offline`; "" where it answers, and for a name that it
        cannot know.
    """
    global _reason
    if not may_know(name):
        return ""
    if not is_offline() and problem():
        _reason = f"the Hub cannot be reached ({endpoint()}: {problem()})"
        if in_cache(name):
            log.info("%s: its cache is used", _reason)
    elif not is_offline():
        return ""
    go_offline()
    return why_offline()


def why_offline() -> str:
    """Why nothing is asked of the Hub: it was tried and did not answer, or `ASKED`; "" if it is."""
    return (_reason or ASKED) if is_offline() else ""


def go_offline() -> None:
    """HF_HUB_OFFLINE=1 for this process, whatever is imported already, and for those it starts."""
    from huggingface_hub import constants

    # Unsloth and PEFT read the environment; transformers asks huggingface_hub.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if config := sys.modules.get("datasets.config"):
        config.HF_HUB_OFFLINE = config.HF_DATASETS_OFFLINE = True  # type: ignore[attr-defined]
    # PEFT asks for the base's config when it saves an adapter; no vocabulary is changed here.
    warnings.filterwarnings("ignore", message="Could not find a config file in")


def may_know(name: str) -> bool:
    """Whether a name can be one of the Hub's: no local path, and of the form owner/name."""
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
    """Whether an error, or what it came from, is that the Hub's cache does not hold what was asked
    for while the Hub is not."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    at: BaseException | None = error if is_offline() and may_know(name) else None
    while at is not None:
        if isinstance(at, (LocalEntryNotFoundError, ConnectionError)):
            return True
        at = at.__cause__ or at.__context__
    return False


def file(model: str, name: str) -> Path | None:
    """A small file of a model on the Hub, from the cache where the Hub is not asked; None where it
    cannot be had."""
    from huggingface_hub import hf_hub_download

    if not may_know(model):
        return None
    try:
        return Path(hf_hub_download(model, name))
    except (OSError, ValueError):  # of huggingface_hub, whose errors are these, and the network
        return None


def in_cache(model: str) -> bool:
    """Whether the Hub's cache holds anything of a model."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=model, repo_type="model")
    return (Path(constants.HF_HUB_CACHE) / folder).is_dir()


def name_of(model: str) -> str | None:
    """The Hub's name of a model, as far as it can be told: a name is its own; a folder in the Hub's
    cache has it in its path, and another may say in its config.json where it is from."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    for part in reversed(folder.absolute().parts):
        if part.startswith("models--"):
            return "/".join(part.split("--")[1:])
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    known = isinstance(said, str) and said.count("/") == 1 and may_know(said)
    return said if known else None
