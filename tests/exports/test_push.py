"""`fasttune export --push`: what a Hub made for the test gets to see, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import fasttune
from fasttune import hub as hub_module
from fasttune.exports.export import RECORD, standing
from fasttune.files import SEAL
from tests.conftest import cli

pytestmark = pytest.mark.slow

TOKEN = "hf_TheTokenOfTheTest"
SECRET = "SecretOfAnother"
QUOTED = 'a "quoted" sécret'
FILES = {
    "merged": [
        "LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json", "verification.json",
    ],
    "adapter": [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "template.json",
        "tokenizer.json", "tokenizer_config.json", "verification.json",
    ],
}  # fmt: skip
"""All that is uploaded: no file of rows is among them."""


class Hub(ThreadingHTTPServer):
    """The part of the Hub's API that an upload takes. Everything it is sent is kept."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, bool] = {}  # whether it is private
        self.files: dict[str, bytes] = {}
        self.listed: dict[str, list[str]] = {}  # what was uploaded to each
        self.blobs: dict[str, bytes] = {}
        self.bodies: list[bytes] = []


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer({})

    def do_GET(self):
        if self.path == "/api/whoami-v2":
            return self.answer({"name": "me", "type": "user"})
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        if name not in self.server.repositories:
            return self.answer({"error": "no"}, 404, {"X-Error-Code": "RepoNotFound"})
        self.answer({"id": name, "private": self.server.repositories[name], "tags": []})

    def do_POST(self):
        body = self.body()
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories[name] = asked["visibility"] == "private"
            return self.answer({"url": f"{self.server.url}/{name}", "id": name})
        if "/preupload/" in self.path:
            large = (".safetensors", ".gguf")
            return self.answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                self.server.listed.setdefault(name, []).append(value.get("path", ""))
                if line["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[value["path"]] = self.server.blobs[value["oid"]]
            where = f"{self.server.url}/{name}/commit/{'1' * 40}"
            return self.answer({"success": True, "commitUrl": where, "commitOid": "1" * 40})
        self.answer({})  # the check of a card's front matter

    def do_PUT(self):
        content = self.body()
        self.server.blobs[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def body(self) -> bytes:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.bodies.append(body)
        return body

    def answer(self, value, status=200, headers=None):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def run(make_run, base):
    """Its base tells where it came from, and has code of its own."""
    settings = json.loads((base / "config.json").read_text())
    local = {"_name_or_path": "/home/somebody/base", "auto_map": {"AutoModel": "code.Model"}}
    (base / "config.json").write_text(json.dumps(settings | local))
    (base / "code.py").write_text("raise SystemExit")
    (base / "LICENSE").write_text("MIT")
    return make_run("shared-run", system="Answer in one word.")


def pushing(hub, *words, token=TOKEN) -> subprocess.CompletedProcess:
    """The command, with a Hub that is there."""
    found = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN": token}
    found["HF_HUB_DISABLE_XET"] = "1"  # its chunks cannot be read here
    return subprocess.run(
        [sys.executable, "-m", "fasttune", "export", *map(str, words)],
        env=os.environ
        | found
        | {"WANDB_API_KEY": SECRET, "DB_PASS": QUOTED, "DSN": "db://me:pass%40word@host/db"},
        capture_output=True,
        text=True,
    )


def test_what_leaves(run, plugins, hub):
    """All of a verified export, into a private repository, and nothing of this machine."""
    for form in ("merged", "adapter"):
        done = fasttune.export(run, form, plugins=plugins, rows=2)
        assert done.verification.verified
        again = standing(run, form)
        assert again.verification == done.verification and again.folder == done.folder
        name = f"me/{form}"
        ended = pushing(hub, run.folder, "--to", form, "--push", name)
        assert ended.returncode == 0, ended.stderr
        assert f"pushed: {hub.url}/{name}" in ended.stdout and "the export is there" in ended.stderr
        assert hub.repositories[name] is True
        here = {file.name: file.read_bytes() for file in done.folder.iterdir()}
        del here[SEAL]
        assert {path: hub.files[path] for path in here} == here
        assert sorted(filter(None, hub.listed[name])) == FILES[form]
    everything = b"\n".join([*hub.bodies, *hub.files.values()])
    secrets = [os.environ["HF_TOKEN"], TOKEN, SECRET]
    questions = [row["instruction"] for row in (*run.training_rows(), *run.held_out())]
    assert questions[7::8] == ["Sum up 7 and 7.", "Add 7 and 7."]
    paths = [str(run.folder), run.manifest["model"], str(Path.home()), str(Path.cwd())]
    secrets += ["tiny-phi-2", "rows.jsonl", "/home/somebody", "code.Model", run.name]
    for word in (*secrets, *questions, *(path for path in paths if path.count("/") > 1)):
        assert word.encode() not in everything, word
    assert b"Answer in one word." in everything  # so a text would be found

    hub.repositories["me/merged"] = False
    ended = pushing(hub, run.folder, "--push", "me/merged")
    assert ended.returncode == 2 and "everybody can read it" in ended.stderr
    ended = pushing(hub, run.folder, "--push", "me/merged", "--public")
    assert ended.returncode == 0
    ended = pushing(hub, run.folder, "--push", "me/other", token="hf_wrong")
    assert ended.returncode == 2 and "the Hub refuses: " in ended.stderr

    record = done.folder / RECORD
    card = done.folder / "README.md"
    (done.folder / "notes.txt").write_text("mine")
    ended = pushing(hub, run.folder, "--to", "adapter", "--push", "me/adapter")
    assert "not pushed, because the export did not write them: notes.txt" in ended.stderr
    assert ended.returncode == 0 and "notes.txt" not in hub.files
    (done.folder / "key").symlink_to("/etc/hostname")
    ended = pushing(hub, run.folder, "--to", "adapter", "--push", "me/adapter")
    assert ended.returncode == 2 and "contains a symbolic link" in ended.stderr
    (done.folder / "key").unlink()
    settings = done.folder / "adapter_config.json"
    config = settings.read_text()
    settings.write_text(json.dumps(json.loads(config) | {"from": "/home/somebody/model"}))
    ended = pushing(hub, run.folder, "--to", "adapter", "--push", "me/adapter")
    assert ended.returncode == 2 and "contains a path of another machine" in ended.stderr
    settings.write_text(config)
    card.write_text(card.read_text() + str(run.folder))
    ended = pushing(hub, run.folder, "--to", "adapter", "--push", "me/adapter")
    assert ended.returncode == 2 and f"contains the path {run.folder}" in ended.stderr
    for text, name in (
        (SECRET, "WANDB_API_KEY"), (json.dumps(f"x{QUOTED}"), "DB_PASS"), ("pass%40word", "DSN"),
    ):  # fmt: skip
        card.write_text(text)
        ended = pushing(hub, run.folder, "--to", "adapter", "--push", "me/adapter")
        assert f"contains the value of the variable {name}, so it is not pushed" in ended.stderr
        assert text not in ended.stderr
    record.write_text(json.dumps(json.loads(record.read_text()) | {"failures": ["row 1: ids"]}))
    ended = pushing(hub, run.folder, "--to", "adapter", "--push", "me/adapter")
    assert ended.returncode == 1 and "differs: row 1: ids" in ended.stdout
    assert b"row 1: ids" not in hub.files[RECORD]


def test_no_file_outside_of_the_base_goes_along(run, base, plugins, tmp_path):
    (tmp_path / "key").write_text("private")
    (base / "NOTICE").symlink_to(tmp_path / "key")
    with pytest.raises(fasttune.FasttuneError, match="is a symbolic link out of its folder"):
        fasttune.export(run, output=tmp_path / "out", plugins=plugins, verify=False)
    (base / "NOTICE").unlink()
    assert not (tmp_path / "out").exists()


def test_a_password_of_the_hubs_address_is_not_printed(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://me:hunter%402@127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("fasttune.hub._reason", "")
    monkeypatch.setattr("fasttune.hub.problem", lambda: "ConnectError")
    monkeypatch.setattr("fasttune.hub.go_offline", lambda: None)
    monkeypatch.setattr("fasttune.hub.why_offline", lambda: hub_module._reason)
    ended = cli("export", run.folder, "--push", "me/mine")
    assert ended.status == 2 and "http://127.0.0.1:9: ConnectError" in ended.err
    assert "hunter" not in ended.err + ended.out


def test_what_is_refused_before_any_work(run):
    for words, said in (
        (["--push", "mine"], "names no repository"),
        (["--push", "me/mine", "--no-verify"], "only a verified export"),
        (["--push", "me/mine"], "HF_HUB_OFFLINE is set"),
        (["--public"], "nothing is pushed"),
    ):
        ended = cli("export", run.folder, "-o", "nowhere", *words)
        assert ended.status == 2 and said in ended.err
    assert not Path("nowhere").exists()
