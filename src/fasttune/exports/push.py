"""Upload a verified export to the Hugging Face Hub, without paths and secrets of this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fasttune import hub
from fasttune.errors import FasttuneError, reason
from fasttune.exports.verify import Exported

if TYPE_CHECKING:
    from fasttune.runs import Run

log = logging.getLogger(__name__)

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt")
HEAD = 2**20
"""Bytes of a file of weights that are searched; the rest are numbers."""
SECRETS = ("TOKEN", "SECRET", "PASSWORD", "API_KEY")
"""Parts of the names of environment variables with secrets."""


def require_repository(name: str) -> None:
    """Refuse a name that is not owner/name, or any name while the Hub cannot be reached."""
    owner, slash, rest = name.partition("/")
    if not (owner and slash and rest and hub.may_know(name)):
        raise FasttuneError(
            "this names no repository of the Hub", f"--push {name}", "give it as owner/name"
        )
    if hub.reach(name):
        raise FasttuneError(
            f"nothing can be pushed: {hub.why_offline()}", f"--push {name}", "try it online"
        )


def push(done: Exported, run: Run, repository: str, public: bool = False) -> str:
    """Upload a verified export, and return the address of the repository.

    A new repository is private, unless `public`.

    Raises:
        FasttuneError: the export contains a path of this machine or a secret; or the repository is
            public, and `public` is not set.
    """
    if done.verification is None or not done.verification.verified:
        raise FasttuneError(
            "the export is UNVERIFIED, so it is not pushed",
            str(done.folder),
            "; ".join(done.failures) or "export it without --no-verify, with --force",
        )
    _require_clean(done.folder, run)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api = HfApi()
    try:
        try:
            known = api.model_info(repository)
        except RepositoryNotFoundError:
            api.create_repo(repository, private=not public)
        else:
            if not known.private and not public:
                raise FasttuneError(
                    "the repository is there, and everybody can read it",
                    f"{hub.endpoint()}/{repository}",
                    "give --public if that is meant, or another name",
                )
        log.info("pushing %s to %s/%s", done.folder, hub.endpoint(), repository)
        api.upload_folder(
            repo_id=repository, folder_path=done.folder, commit_message="Export by fasttune"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise FasttuneError(
            f"the Hub refuses: {reason(error)}",
            f"--push {repository}",
            "log in with `hf auth login`, or set HF_TOKEN, as one who may write there",
        ) from error
    return f"{hub.endpoint()}/{repository}"


def _require_clean(folder: Path, run: Run) -> None:
    words = {word: f"the path {word}" for word in _paths(run)}
    for name, value in os.environ.items():
        if len(value) >= 8 and any(part in name.upper() for part in SECRETS):
            words[value] = f"what the variable {name} holds"
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        with file.open("rb") as opened:
            content = opened.read(HEAD if file.suffix in WEIGHTS else -1)
        for word, what in words.items():
            if word.encode() in content:
                raise FasttuneError(
                    f"the export holds {what}, so it is not pushed",
                    str(file),
                    "take it out, or tell the exporter's author",
                )


def _paths(run: Run) -> Iterable[str]:
    """Paths that the export could contain; a short one such as /root would match other text."""
    home = Path.home()
    places = [run.folder.absolute(), run.folder.resolve(), *([home] if home.parts[2:] else [])]
    names = [run.manifest["model"], run.manifest["data"]["source"], run.config.data.train]
    places += [Path(name) for name in names if name and Path(name).is_absolute()]
    return (str(place) for place in places if place.parts[1:])
