from __future__ import annotations

import pytest

from fasttune.errors import FasttuneError
from fasttune.files import require_name


@pytest.mark.parametrize("name", ["reasoning", "Phi-2", "v1.2_b", "日本語", "a", "x" * 100])
def test_names(name):
    require_name(name, "a template", "here")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "../x", "a/b", "a\\b", "a b", "a\n", "a\0", "~", "x" * 101, None, 3],
)
def test_what_is_no_name(name):
    with pytest.raises(FasttuneError, match="no name for a template"):
        require_name(name, "a template", "here")
