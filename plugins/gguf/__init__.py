"""GGUF files: the exporter, the writer, and llama.cpp to read them back."""

from pathlib import Path

from fasttune import FasttuneError

# The types that the gguf package quantizes itself: matrices to this type, vectors stay f32. Types
# below 8 bits keep the embedding and the output head in 8 bits, because rounding those costs most.
QUANTS = ("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
# The types that need llama.cpp's own program, llama-quantize, on the PATH.
K_QUANTS = ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k")


def refusal(what: str, file: Path, supported: str = "") -> FasttuneError:
    """The error for a model that llama.cpp would read differently."""
    hint = "export with --to merged, and convert that with llama.cpp's convert_hf_to_gguf.py"
    if supported:
        hint += f" (fasttune supports {supported})"
    return FasttuneError(f"no GGUF can be written: {what}", str(file), hint)
