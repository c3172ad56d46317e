"""The vocabulary is what these tests are about, so it is of its real size."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import tiny_model


@pytest.fixture(scope="session")
def tiny_phi(phi2_tokenizer) -> Path:
    """Phi-2 but for its size, with its whole vocabulary."""
    return tiny_model("phi", phi2_tokenizer, dtype="float16")
