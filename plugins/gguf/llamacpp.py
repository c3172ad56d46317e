"""Read a GGUF file with llama.cpp, to compare it with its run."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fasttune import ChatFormat, FasttuneError, Row, Template


def require_llama_cpp() -> Any:
    """Import llama_cpp, or say how to install it."""
    try:
        import llama_cpp
    except ImportError as error:
        raise FasttuneError(
            "llama-cpp-python is not installed, so the GGUF file cannot be compared with the run",
            "llama_cpp",
            "run `pip install llama-cpp-python` (it compiles for some minutes) and export again "
            "with --force, or export with --no-verify",
        ) from error
    return llama_cpp


class LlamaCppReader:
    """A GGUF file in llama.cpp on the CPU, with an fp32 cache, so that only the file can differ.

    Args:
        chat: the run's chat format. Prompts are rendered by the chat template in the file, or by
            `template` if the file has none.
        context: tokens of the longest prompt with its answer.

    Raises:
        FasttuneError: llama-cpp-python is not installed, or cannot read the file.
    """

    def __init__(
        self, file: Path, template: Template, chat: ChatFormat | None, context: int = 2048
    ) -> None:
        llama_cpp = require_llama_cpp()
        try:
            self._llama: Any = llama_cpp.Llama(
                str(file),
                n_ctx=context,
                logits_all=True,
                type_k=llama_cpp.GGML_TYPE_F32,
                type_v=llama_cpp.GGML_TYPE_F32,
                n_gpu_layers=0,
                verbose=False,
            )
        except ValueError as error:
            raise FasttuneError(
                f"llama.cpp cannot load the file: {error}",
                str(file),
                "upgrade llama-cpp-python; older versions do not know every model",
            ) from error
        # Closed by the interpreter at exit, llama-cpp-python prints a traceback.
        weakref.finalize(self, self._llama.close)
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._llama.model)
        self._is_end = llama_cpp.llama_vocab_is_eog
        self._template, self._chat, self._context = template, chat, context

    def prompt_ids(self, row: Row) -> list[int]:
        metadata = self._llama.metadata
        jinja = metadata.get("tokenizer.chat_template")
        add_bos = metadata.get("tokenizer.ggml.add_bos_token") == "true"
        if jinja is None or self._chat is None:
            return self.tokenize(self._template.prompt(row), add_bos)
        bos, eos = self._piece("bos"), self._piece("eos")
        text = self._chat.render(row, jinja, bos, eos)
        # Like llama.cpp's server: if the template writes BOS, no second one is added.
        return self.tokenize(text, add_bos and not (bos and text.startswith(bos)))

    def tokenize(self, text: str, add_bos: bool = False) -> list[int]:
        """The ids of a text; special tokens in it are recognized."""
        ids: list[int] = self._llama.tokenize(text.encode("utf-8"), add_bos=add_bos, special=True)
        return ids

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        self._llama.reset()
        self._evaluate(ids)
        logits: np.ndarray = self._llama.scores[: len(ids)].astype(np.float32)
        return logits

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        self._llama.reset()
        self._evaluate(ids)
        answer: list[int] = []
        while len(answer) < count:
            answer.append(int(self._llama.scores[self._llama.n_tokens - 1].argmax()))
            # llama.cpp stops at every token that it knows as an end, not only at the file's EOS.
            if self._is_end(self._vocabulary, answer[-1]):
                break
            self._evaluate(answer[-1:])
        return answer

    def eos_ids(self) -> set[int]:
        """The EOS in the file's metadata; llama.cpp also stops at texts that it knows as ends."""
        eos = self._llama.metadata.get("tokenizer.ggml.eos_token_id")
        return set() if eos is None else {int(eos)}

    def _evaluate(self, ids: Sequence[int]) -> None:
        if self._llama.n_tokens + len(ids) > self._context:
            raise FasttuneError(
                f"a prompt with its answer has more than {self._context} tokens",
                "the rows that verifying reads",
                "export with --no-verify, or train with a larger model.max_length",
            )
        self._llama.eval(list(ids))

    def _piece(self, name: str) -> str:
        token = self._llama.metadata.get(f"tokenizer.ggml.{name}_token_id")
        text = b"" if token is None else self._llama.detokenize([int(token)], special=True)
        return text.decode("utf-8")
