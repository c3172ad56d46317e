"""A tokenizer.json -> the vocabulary of a GGUF file."""

from __future__ import annotations

import json
import re
from collections import Counter
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
# That of Qwen2 and Qwen3: one digit at a time.
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(expression: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
    }


_NFC = {"type": "NFC"}
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
            _split(_LLAMA3),
            {**_BYTES, "use_regex": False},
        ],
        "llama-bpe",
    ),
    (
        [
            _split(_QWEN2),
            {**_BYTES, "use_regex": False},
        ],
        "qwen2",
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
    tokens, kinds = _tokens(tokenizer, size, file)
    if sentencepiece := tokenizer["model"].get("byte_fallback"):
        spaced = space_before(tokenizer, file)
        scores = piece_scores(tokenizer, file)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores([scores.get(token, 0.0) for token in tokens])
        writer.add_token_types(_piece_kinds(tokens, kinds, tokenizer["model"].get("unk_token")))
    else:
        pre = pre_tokenizer_name(tokenizer, file)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])
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
    writer.add_add_space_prefix(spaced if sentencepiece else False)


def _merges(tokenizer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs that are merged, the first ones first."""
    merges = tokenizer["model"]["merges"]
    return [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in merges]


def _unlike(what: str, file: Path) -> FasttuneError:
    return FasttuneError(
        f"no GGUF can be written for this tokenizer: it {what}",
        str(file),
        f"known: SentencePiece's BPE, {', '.join(name for _, name in PRE_TOKENIZERS)}; export it "
        "as merged",
    )


_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_PREPEND = {"type": "Prepend", "prepend": "▁"}
# After the normalizer there is no space left that this could split at.
_NO_SPLIT = {
    "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
}  # fmt: skip


def space_before(tokenizer: Mapping[str, Any], file: Path) -> bool:
    """Whether a tokenizer of SentencePiece's kind puts a space before a text.

    Raises:
        FasttuneError: it treats spaces as llama.cpp does not.
    """
    normalizer, pre = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    parts = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if pre.get("type") == "Metaspace" and not parts:
        # llama.cpp does so before a text that has one already, and behind a special token, as well;
        # no prompt of a format begins so, and where one does, verifying tells.
        if pre.get("replacement") == "▁" and not pre.get("split"):
            return bool(pre.get("prepend_scheme") != "never")
    elif pre in ({}, _NO_SPLIT) and parts in ([_REPLACE], [_PREPEND, _REPLACE]):
        return _PREPEND in parts
    raise _unlike(f"treats spaces as no SentencePiece of llama.cpp's does: {parts} {pre}", file)


def piece_scores(tokenizer: Mapping[str, Any], file: Path) -> dict[str, float]:
    """The score of each piece: llama.cpp merges whatever makes the piece of the highest one, as
    SentencePiece does, where a tokenizer.json lists the pairs to merge, the first ones first.

    Raises:
        FasttuneError: the two would merge otherwise.
    """
    pairs = _merges(tokenizer)
    pieces = [left + right for left, right in pairs]
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for rank, piece in enumerate(pieces):
        first.setdefault(piece, rank)
        last[piece] = rank
    counts = Counter(pieces)
    torn = [piece for piece in first if last[piece] - first[piece] >= counts[piece]]
    scores = {piece: -float(rank) for piece, rank in first.items()}
    if torn:
        # Runs of spaces have one score. The pairs of a longer one come first then, which is what
        # taking the leftmost of equals comes to.
        start, end = min(map(first.__getitem__, torn)), max(map(last.__getitem__, torn))
        tied = {*pieces[start : end + 1]}
        if {*"".join(tied)} != {"▁"} or any(first[p] < start or last[p] > end for p in tied):
            raise _unlike(f"merges into {torn[0]!r} at two ranks, as SentencePiece does not", file)
        scores |= dict.fromkeys(tied, -float(start))
    vocabulary, known = tokenizer["model"]["vocab"], {*pairs}
    added = {each["content"] for each in tokenizer.get("added_tokens", ())}
    for piece in vocabulary:
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        for cut in () if piece in added or _is_byte(piece) else cuts:
            if cut not in known and cut[0] in vocabulary and cut[1] in vocabulary:
                raise _unlike(f"never merges {' and '.join(map(repr, cut))}", file)
    return scores


def _is_byte(piece: str) -> bool:
    return re.fullmatch("<0x[0-9A-F]{2}>", piece) is not None


def _piece_kinds(tokens: Sequence[str], kinds: Sequence[int], unknown: str | None) -> list[int]:
    """The types, those that only SentencePiece has included."""
    from gguf import TokenType

    return [
        int(TokenType.BYTE)
        if _is_byte(token)
        else int(TokenType.UNKNOWN)
        if token == unknown
        else kind
        for token, kind in zip(tokens, kinds, strict=True)
    ]


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
            ("normalises text", tokenizer.get("normalizer") not in (None, _NFC)),
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
                if tokenizer.get("normalizer") and name != "qwen2":
                    break  # llama.cpp does it for none; Qwen's are used without everywhere
                return name
        unlike = [f"splits text by {json.dumps(pre, ensure_ascii=False)[:200]}"]
        if tokenizer.get("normalizer"):
            unlike = ["normalises text"]
    raise _unlike(unlike[0], file)


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
