"""Models and tokenizers; the only folder that imports unsloth."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version


def _hide_broken_torchvision() -> None:
    """Hide a torchvision that Unsloth brought and that does not fit this torch.

    Beside a CPU build of torch its CUDA operators do not load, and then neither Unsloth nor
    transformers can be imported. Nothing here needs images.
    """
    try:
        built_for_cpu = [version(name).endswith("+cpu") for name in ("torch", "torchvision")]
    except PackageNotFoundError:
        return
    if built_for_cpu != [True, False] or "torchvision" in sys.modules:
        return
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        os.environ["UNSLOTH_SKIP_TORCHVISION_CHECK"] = "1"


_hide_broken_torchvision()
