"""Upload a verified export to the Hugging Face Hub, without paths and secrets of this machine."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune import hub
from fasttune.errors import FasttuneError, reason
from fasttune.exports.verify import Exported
from fasttune.files import SEAL, require_no_links, unlisted
from fasttune.models.whole import read_object

if TYPE_CHECKING:
    from fasttune.runs import Run

log = logging.getLogger(__name__)

SECRETS = ("TOKEN", "SECRET", "PASS", "KEY", "CREDENTIAL", "AUTH")
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
    files = _files(done.folder)
    _require_clean(done.folder, files, run)
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
            repo_id=repository,
            folder_path=done.folder,
            allow_patterns=files,
            commit_message="Export by fasttune",
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise FasttuneError(
            f"the Hub refuses: {reason(error)}",
            f"--push {repository}",
            "log in with `hf auth login`, or set HF_TOKEN, as one who may write there",
        ) from error
    return f"{hub.endpoint()}/{repository}"


def _files(folder: Path) -> list[str]:
    """The files that the export's seal lists. Only these are pushed."""
    require_no_links(folder, "the export")
    if not (folder / SEAL).is_file():
        hint = "export it again, with --force"
        raise FasttuneError(f"the export has no {SEAL}", str(folder), hint)
    left_out = {folder / SEAL, *unlisted(folder)}
    if names := ", ".join(sorted(path.name for path in left_out if path.name != SEAL)):
        log.warning("warning: not pushed, because the export did not write them: %s", names)
    kept = (path for path in sorted(folder.rglob("*")) if path.is_file() and path not in left_out)
    return [path.relative_to(folder).as_posix() for path in kept]


def _require_clean(folder: Path, files: Iterable[str], run: Run) -> None:
    """Refuse an export that contains a path of this machine or a secret of the environment."""
    words = {word: f"the path {word}" for word in _paths(run)}
    words |= {value: f"the value of the variable {name}" for name, value in _secrets()}
    for file in (folder / name for name in files):
        if not file.stat().st_size:
            continue
        with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as content:
            what = [what for word, what in words.items() if _contains(content, word)]
        if file.match("*config.json") and without_paths(values := read_object(file)) != values:
            what.append("a path of another machine")
        if what:
            raise FasttuneError(
                f"the export contains {what[0]}, so it is not pushed",
                str(file),
                "remove it: from this file, or from the system text, and export again",
            )


def without_paths(value: Any) -> Any:
    """A JSON value without the texts that are paths on a machine."""
    if isinstance(value, dict):
        return {key: without_paths(each) for key, each in value.items() if not _is_path(each)}
    if isinstance(value, list):
        return [without_paths(each) for each in value if not _is_path(each)]
    return value


def _is_path(value: Any) -> bool:
    path = r"/[\w.-]+/|~[/\\]|\.{1,2}[/\\]\w|[A-Za-z]:[/\\]|file:"
    return isinstance(value, str) and re.match(path, value) is not None


def _contains(content: mmap, word: str) -> bool:
    """Whether a file holds a word, as it is or escaped as in JSON."""
    forms = {word, *(json.dumps(word, ensure_ascii=escaped)[1:-1] for escaped in (True, False))}
    return any(content.find(form.encode(errors="surrogateescape")) >= 0 for form in forms)


def _secrets() -> Iterator[tuple[str, str]]:
    """(variable, value) of the environment variables with secrets: by their names, or as the
    password of an address."""
    for name, value in os.environ.items():
        if len(value) >= 8 and any(part in name.upper() for part in SECRETS):
            yield name, value
        for password in re.findall(r"://[^/\s:]*:([^/\s]{4,})@", value):
            yield name, password


def _paths(run: Run) -> Iterable[str]:
    """Paths that the export could contain; a short one such as /root would match other text."""
    home = Path.home()
    places = [run.folder.absolute(), run.folder.resolve(), *([home] if home.parts[2:] else [])]
    data = run.config.data
    names = [run.manifest["model"], run.manifest["data"]["source"], data.train, data.eval]
    names += [source.name for source in data.sources]
    places += [Path(name) for name in names if name and Path(name).is_absolute()]
    return (str(place) for place in places if place.parts[1:])
