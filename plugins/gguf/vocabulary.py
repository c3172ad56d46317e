"""Write the vocabulary of a tokenizer.json into a GGUF file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune import FasttuneError

from . import refusal

if TYPE_CHECKING:
    from gguf import GGUFWriter

# The regular expression in Llama 3's tokenizer.json.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The one of Qwen2 and Qwen3 splits numbers into digits.
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split_by(expression: str) -> list[Mapping[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated"}
    return [{**split, "invert": False}, {**_BYTES, "use_regex": False}]


# llama.cpp's name -> how the tokenizer splits text before merging. The expressions are part of
# llama.cpp's code, so there are no other names.
PRE_TOKENIZERS: dict[str, list[Mapping[str, Any]]] = {
    "gpt-2": [_BYTES],
    "smollm": [_DIGITS, _BYTES],
    "llama-bpe": _split_by(_LLAMA3),
    "qwen2": _split_by(_QWEN2),
}


def add_vocabulary(writer: GGUFWriter, folder: Path, size: int) -> None:
    """Write tokens, types, merges, the pre-tokenizer's name and the special ids.

    Args:
        folder: holds tokenizer.json and tokenizer_config.json.
        size: rows of the embedding; those without a token become unused tokens.

    Raises:
        FasttuneError: llama.cpp would tokenize text differently.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FasttuneError(
            "the folder has no tokenizer.json", str(folder), "choose a model with a fast tokenizer"
        )
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokens, kinds = _tokens(tokenizer, size, file)
    space = False
    if tokenizer["model"].get("byte_fallback"):  # SentencePiece's BPE
        space = space_before(tokenizer, file)
        scores = piece_scores(tokenizer, file)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([scores.get(token, 0.0) for token in tokens])
        kinds = _piece_kinds(tokens, kinds, tokenizer["model"].get("unk_token"))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer, file))
        writer.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = _special_ids(folder, tokens)
    if "eos" not in special:
        raise FasttuneError(
            "the tokenizer names no EOS token, so generation would never end",
            str(folder / "tokenizer_config.json"),
            "set eos_token in this file",
        )
    for name, number in special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(_adds_bos(file, special.get("bos")))
    writer.add_add_space_prefix(space)


def _merges(tokenizer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs of pieces to merge, in order of priority."""
    merges = tokenizer["model"]["merges"]
    return [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in merges]


def _unsupported(what: str, file: Path) -> FasttuneError:
    supported = f"SentencePiece's BPE, {', '.join(PRE_TOKENIZERS)}"
    return refusal(f"the tokenizer {what}", file, supported)


_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_PREPEND = {"type": "Prepend", "prepend": "▁"}
# This has no effect: the normalizer has replaced every space before.
_NO_SPLIT = {
    "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
}  # fmt: skip


def space_before(tokenizer: Mapping[str, Any], file: Path) -> bool:
    """Whether a SentencePiece tokenizer puts a space before a text."""
    normalizer, pre = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    parts = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if pre.get("type") == "Metaspace" and not parts:
        # llama.cpp also adds one after a special token, and before a text that begins with a space.
        # Prompts do not begin like this; if one does, verifying reports it.
        if pre.get("replacement") == "▁" and not pre.get("split"):
            return bool(pre.get("prepend_scheme") != "never")
    elif pre in ({}, _NO_SPLIT) and parts in ([_REPLACE], [_PREPEND, _REPLACE]):
        return _PREPEND in parts
    raise _unsupported(f"treats spaces as llama.cpp never does: {parts} {pre}", file)


def piece_scores(tokenizer: Mapping[str, Any], file: Path) -> dict[str, float]:
    """The score of each piece.

    llama.cpp and SentencePiece merge the pair that gives the piece with the highest score; a
    tokenizer.json lists the pairs by priority.

    Raises:
        FasttuneError: no scores give the same merges.
    """
    pairs = _merges(tokenizer)
    pieces = [left + right for left, right in pairs]
    last = {piece: rank for rank, piece in enumerate(pieces)}
    first = {piece: rank for rank, piece in reversed([*enumerate(pieces)])}
    counts = Counter(pieces)
    torn = [piece for piece in last if last[piece] - first[piece] >= counts[piece]]
    scores = {piece: -float(rank) for piece, rank in first.items()}
    if torn:
        # Runs of spaces share one score. Their pairs are listed by length, longest first, which
        # equals merging the leftmost of pairs with equal scores.
        start, end = min(map(first.__getitem__, torn)), max(map(last.__getitem__, torn))
        tied = {*pieces[start : end + 1]}
        if {*"".join(tied)} != {"▁"} or any(first[p] < start or last[p] > end for p in tied):
            raise _unsupported(f"merges into {torn[0]!r} at two ranks", file)
        scores |= dict.fromkeys(tied, -float(start))
    vocabulary, known = tokenizer["model"]["vocab"], {*pairs}
    added = {each["content"] for each in tokenizer.get("added_tokens", ())}
    for piece in vocabulary:
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        for cut in () if piece in added or _is_byte(piece) else cuts:
            if cut not in known and cut[0] in vocabulary and cut[1] in vocabulary:
                raise _unsupported(f"never merges {' and '.join(map(repr, cut))}", file)
    return scores


def _is_byte(piece: str) -> bool:
    return re.fullmatch("<0x[0-9A-F]{2}>", piece) is not None


def _piece_kinds(tokens: Sequence[str], kinds: Sequence[int], unknown: str | None) -> list[int]:
    """The types of the tokens, with SentencePiece's types for bytes and the unknown token."""
    from gguf import TokenType

    special = {token: int(TokenType.BYTE) for token in tokens if _is_byte(token)}
    special |= {unknown: int(TokenType.UNKNOWN)} if unknown else {}
    return [special.get(token, kind) for token, kind in zip(tokens, kinds, strict=True)]


def pre_tokenizer_name(tokenizer: Mapping[str, Any], file: Path) -> str:
    """llama.cpp's name for how the tokenizer splits text."""
    model, pre = tokenizer["model"], tokenizer.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE":
        raise _unsupported(f"is of type {model['type']}", file)
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _unsupported("cuts words", file)
    parts, normalizer = pre.get("pretokenizers", [pre]), tokenizer.get("normalizer")
    # llama.cpp looks up whole words in the vocabulary only for Llama 3.
    names = ["llama-bpe"] if model.get("ignore_merges") else ["gpt-2", "smollm", "qwen2"]
    name = next((name for name in names if _alike(parts, PRE_TOKENIZERS[name])), None)
    # llama.cpp never normalizes. Qwen's NFC is left out in all of its GGUF files.
    if normalizer and (name != "qwen2" or normalizer != {"type": "NFC"}):
        raise _unsupported("normalises text", file)
    if name is None:
        raise _unsupported(f"splits text by {json.dumps(pre, ensure_ascii=False)[:200]}", file)
    return name


def _alike(parts: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> bool:
    # use_regex is true by default, and trim_offsets changes no token.
    return len(parts) == len(known) and all(
        part.get(key, key == "use_regex") == value
        for part, wanted in zip(parts, known, strict=True)
        for key, value in wanted.items()
    )


def _tokens(tokenizer: Mapping[str, Any], size: int, file: Path) -> tuple[list[str], list[int]]:
    """The text and the type of each id."""
    from gguf import TokenType

    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [int(TokenType.UNUSED)] * size
    vocabulary = {token: (i, TokenType.NORMAL) for token, i in tokenizer["model"]["vocab"].items()}
    for added in tokenizer.get("added_tokens", ()):
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            what = f"the token {added['content']!r} takes in white space"
            raise refusal(f"{what}, which llama.cpp does not do", file)
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        vocabulary[added["content"]] = (added["id"], kind)
    if (highest := max(i for i, _ in vocabulary.values())) >= size:
        raise FasttuneError(
            f"the tokenizer has the id {highest}, and the model {size} rows",
            str(file),
            "use tokenizer and weights of the same model",
        )
    for token, (number, kind) in vocabulary.items():
        tokens[number], kinds[number] = token, int(kind)
    return tokens, kinds


def _special_ids(folder: Path, tokens: list[str]) -> dict[str, int]:
    """The ids of eos, bos, pad and unk, if the tokenizer names them."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    ids = {}
    for name in ("eos", "bos", "pad", "unk"):
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text in tokens:
            ids[name] = tokens.index(text)
    return ids


def _adds_bos(file: Path, bos: int | None) -> bool:
    """Whether the tokenizer adds BOS to a text; other tokens are refused."""
    from tokenizers import Tokenizer

    added = Tokenizer.from_file(str(file)).encode("").ids
    if added and added != [bos]:
        raise refusal(f"the tokenizer adds the ids {added} to every text, not only BOS", file)
    return bool(added)
