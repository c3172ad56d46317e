"""What results show of themselves in a notebook is text, never markup of somebody else's."""

from __future__ import annotations

import json

from fasttune.pages import framed, picture
from fasttune.runs import Run

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


def test_a_page_stays_within_its_frame():
    shown = framed(HOSTILE)
    assert "<script" not in shown and "<img" not in shown and shown.count('"') == 4


def test_words_of_a_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    shown = picture(tmp_path / "a.png", HOSTILE)
    assert shown.count("<") == 1 and shown.count('"') == 6


def test_a_run(tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(2)>"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"status": HOSTILE, "steps": 3}))
    (folder / "loss.png").write_bytes(b"png")
    shown = Run(folder)._repr_html_()
    assert "<script" not in shown and shown.count("<img") == 1 and "onerror=alert(2)>" not in shown
