"""The notebook of examples/, executed from its first cell to its last, on the tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import tiny_model

pytestmark = pytest.mark.slow

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
FILE = Path(__file__).parents[1] / "examples" / "first_run.ipynb"
PARAMETERS = """
MODEL, DATA, TEMPLATE = {model!r}, None, "reasoning"
SETTINGS = [
    "data.limit=40", "train.max_steps=2", "samples.count=2", "samples.max_new_tokens=4",
    "samples.batch_size=2", "samples.by=[task]",
]
"""


def test_it_is_kept_without_results_and_says_what_to_change_on_colab():
    made = nbformat.read(FILE, 4)
    nbformat.validate(made)
    assert all(not cell.outputs for cell in made.cells if cell.cell_type == "code")
    first = made.cells[0].source
    assert "On Colab" in first and "MODEL" in first and "runtime" in first


def test_from_install_to_an_exported_model(tmp_path, monkeypatch, phi2_tokenizer):
    model = tiny_model(
        "llama", phi2_tokenizer, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))  # fasttune as it is tested
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    made = nbformat.read(FILE, 4)
    (parameters,) = [c for c in made.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = PARAMETERS.format(model=str(model))
    client = nbclient.NotebookClient(
        made, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [json.dumps(cell.outputs) for cell in made.cells if cell.cell_type == "code"]
    _, _, prepared, preview, plan, trained, samples, asked, exported = shown
    assert "rows to train on" in prepared
    assert "text/html" in preview and "instruction &lt;small&gt;given" in preview
    assert "in all" in plan
    assert "data:image/png;base64" in trained and "status" not in trained
    assert "image/png" in samples and "text/markdown" in samples
    assert "response" in asked
    assert "verified" in exported and "NOT verified" not in exported
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "exports/merged/model.safetensors").is_file()
