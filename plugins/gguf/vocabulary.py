"""A tokenizer.json -> the vocabulary of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune import FasttuneError

if TYPE_CHECKING:
    from gguf import GGUFWriter

# The regular expression of Llama 3's tokenizer.json.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False}
# How text is split before merging -> llama.cpp's name for it. llama.cpp has the expressions in its
# own code: a name that it does not know cannot be made up.
PRE_TOKENIZERS: tuple[tuple[list[Mapping[str, Any]], str], ...] = (
    ([{**_BYTES, "use_regex": True}], "gpt-2"),
    (
        [{"type": "Digits", "individual_digits": True}, {**_BYTES, "use_regex": True}],
        "smollm",
    ),
    (
        [
            {
                "type": "Split",
                "pattern": {"Regex": _LLAMA3},
                "behavior": "Isolated",
                "invert": False,
            },
            {**_BYTES, "use_regex": False},
        ],
        "llama-bpe",
    ),
)


def add_vocabulary(writer: GGUFWriter, folder: Path, size: int) -> None:
    """Write tokens, types, merges, the pre-tokenizer's name and the special ids.

    Args:
        folder: with tokenizer.json and tokenizer_config.json.
        size: rows of the embedding; the rows without a token become unused ones.

    Raises:
        FasttuneError: llama.cpp would tokenize otherwise.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FasttuneError("the folder has no tokenizer.json", str(folder), "use a fast tokenizer")
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    pre = pre_tokenizer_name(tokenizer, file)
    tokens, kinds = _tokens(tokenizer, size, file)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    special = _special_ids(folder, tokens)
    if "eos" not in special:
        raise FasttuneError(
            "the tokenizer names no EOS token, so generation would never end",
            str(folder / "tokenizer_config.json"),
            "set eos_token there",
        )
    writer.add_eos_token_id(special["eos"])
    if "bos" in special:
        writer.add_bos_token_id(special["bos"])
    if "pad" in special:
        writer.add_pad_token_id(special["pad"])
    if "unk" in special:
        writer.add_unk_token_id(special["unk"])
    writer.add_add_bos_token(_adds_bos(file, special.get("bos")))
    writer.add_add_space_prefix(False)


def pre_tokenizer_name(tokenizer: Mapping[str, Any], file: Path) -> str:
    """llama.cpp's name for how the tokenizer splits text.

    Raises:
        FasttuneError: it is none of the kinds that are known to be split alike.
    """
    model, pre = tokenizer["model"], tokenizer.get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers", [pre])
    unlike = [
        what
        for what, present in (
            (f"is of type {model.get('type')}", model.get("type", "BPE") != "BPE"),
            ("falls back to bytes, as SentencePiece does", model.get("byte_fallback")),
            ("normalises text", tokenizer.get("normalizer")),
            (
                "cuts words",
                model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"),
            ),
        )
        if present
    ]
    if not unlike:
        for known, name in PRE_TOKENIZERS:
            # llama.cpp takes whole words of the vocabulary for Llama 3 alone.
            whole_words = name == "llama-bpe"
            if _alike(parts, known) and bool(model.get("ignore_merges")) == whole_words:
                return name
        unlike = [f"splits text by {json.dumps(pre, ensure_ascii=False)[:200]}"]
    raise FasttuneError(
        f"no GGUF can be written for this tokenizer: it {unlike[0]}",
        str(file),
        f"known: {', '.join(name for _, name in PRE_TOKENIZERS)}; export it as merged",
    )


def _alike(parts: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> bool:
    # use_regex may be left out where it is true, and trim_offsets changes no token.
    return len(parts) == len(known) and all(
        part.get(key, key == "use_regex") == value
        for part, wanted in zip(parts, known, strict=True)
        for key, value in wanted.items()
    )


def _tokens(tokenizer: Mapping[str, Any], size: int, file: Path) -> tuple[list[str], list[int]]:
    """The text and the type of each id, unused ones included."""
    from gguf import TokenType

    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [int(TokenType.UNUSED)] * size
    vocabulary = {token: (i, TokenType.NORMAL) for token, i in tokenizer["model"]["vocab"].items()}
    for added in tokenizer.get("added_tokens", ()):
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            raise FasttuneError(
                f"the token {added['content']!r} takes in white space, which llama.cpp does not do",
                str(file),
                "export it as merged",
            )
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        vocabulary[added["content"]] = (added["id"], kind)
    if (highest := max(i for i, _ in vocabulary.values())) >= size:
        raise FasttuneError(
            f"the tokenizer has the id {highest}, and the model {size} rows", str(file), ""
        )
    for token, (number, kind) in vocabulary.items():
        tokens[number], kinds[number] = token, int(kind)
    return tokens, kinds


def _special_ids(folder: Path, tokens: list[str]) -> dict[str, int]:
    """bos, eos, pad and unk -> id, where the tokenizer names them."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = {}
    for name in ("bos", "eos", "pad", "unk"):
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text in tokens:
            found[name] = tokens.index(text)
    return found


def _adds_bos(file: Path, bos: int | None) -> bool:
    """Whether the tokenizer puts BOS, and nothing else, before a text.

    Raises:
        FasttuneError: it adds other tokens.
    """
    from tokenizers import Tokenizer

    added = Tokenizer.from_file(str(file)).encode("").ids
    if added and added != [bos]:
        raise FasttuneError(
            f"the tokenizer adds the ids {added} to every text; only BOS can be kept in a GGUF",
            str(file),
            "export it as merged",
        )
    return bool(added)
