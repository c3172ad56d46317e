"""Exact ids and masks with Phi-2's real tokenizer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, settings
from hypothesis import given as forall
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from fasttune import FasttuneError, Template, learn
from fasttune import given as given_
from fasttune.encoding.encode import (
    BATCH,
    IGNORED,
    Encoded,
    Span,
    encode,
    encode_many,
    encode_prompt,
    eos_id,
    limit_lengths,
)
from fasttune.encoding.spans import Tokens, lay, tokenize
from fasttune.formats.parts import Segment
from tests.conftest import build_phi2_tokenizer

EOS = 50256
_ = IGNORED


TAGGED = Template(
    name="tagged",
    parts=[
        given_("instruction", "<|instruction|>{instruction}\n"),
        given_("response", "<|response|>"),
        learn("response", "{output}"),
    ],
)


class Middle(Template):
    """A given section in the middle of the completion, which only a computed format can have."""

    def segments(self, row):
        yield Segment("instruction", f"Q: {row['instruction']}\n", False)
        yield Segment("reasoning", row.get("reasoning", ""), True)
        yield Segment("marker", "<|response|>", False)
        yield Segment("response", row.get("output", ""), True)


MIDDLE = Middle(name="middle")


def listed(*segments):
    """A format of these segments, whatever the row is."""

    class Listed(Template):
        def segments(self, row):
            return segments

    return Listed(name="listed")


def asked(name, text):
    return Segment(name, text, False)


def learned(name, text):
    return Segment(name, text, True)


ENGLISH = [27, 91, 8625, 2762, 91, 29, 4550, 362, 290, 513, 13, 198, 27, 91, 26209, 91, 29]
JAPANESE = [27, 91, 8625, 2762, 91, 29, 33768, 98, 17312, 105, 33426, 99, 244, 32849, 121, 31676]
JAPANESE += [171, 120, 253, 198, 27, 91, 26209, 91, 29]
SPEAK = [27, 91, 8625, 2762, 91, 29, 5248, 461, 13, 198, 27, 91, 26209, 91, 29]


@pytest.mark.parametrize(
    ("instruction", "output", "prompt", "completion"),
    [
        ("Add 2 and 3.", "2 + 3 = 5.", ENGLISH, [17, 1343, 513, 796, 642, 13]),
        ("日本の首都は？", "東京です。", JAPANESE, [30266, 109, 12859, 105, 30640, 33623, 16764]),
        # `>` and the quote would be one token if they were tokenized together: see below.
        ("Speak.", '"Hi"', SPEAK, [1, 17250, 1]),
        ("Speak.", "\n\nHi\n", SPEAK, [198, 198, 17250, 198]),
        ("Speak.", "<|response|>x", SPEAK, [27, 91, 26209, 91, 29, 87]),
    ],
    ids=["english", "japanese", "quote", "newline", "tag"],
)
def test_ids_and_mask(phi2_tokenizer, instruction, output, prompt, completion):
    row = {"instruction": instruction, "output": output}
    encoded = encode(TAGGED, row, phi2_tokenizer)
    assert encoded.input_ids == [*prompt, *completion, EOS]
    assert encoded.labels == [*[_] * len(prompt), *completion, EOS]
    start, end = len(prompt), len(prompt) + len(completion)
    assert encoded.prompt_length == start
    assert encoded.spans == [
        Span("instruction", 0, start - 5, False),  # <|response|> is five tokens
        Span("response", start - 5, start, False),
        Span("response", start, end, True),
        Span("eos", end, end + 1, True),
    ]
    assert encode_prompt(TAGGED, {"instruction": instruction}, phi2_tokenizer) == prompt


def test_a_tag_and_a_quote_are_one_token_when_tokenized_together(phi2_tokenizer):
    """Why the prompt and the completion are tokenized apart."""
    merged = phi2_tokenizer('<|response|>"').input_ids
    assert phi2_tokenizer.convert_ids_to_tokens(merged) == ["<", "|", "response", "|", '>"']
    encoded = encode(TAGGED, {"instruction": "Speak.", "output": '"'}, phi2_tokenizer)
    assert merged[-1] not in encoded.input_ids


@pytest.mark.parametrize(
    ("reasoning", "output", "ids", "labels", "spans"),
    [
        (  # the token `>"` carries the first character of the response, so it is learned
            "7 x 2\n",
            '"14"',
            [48, 25, 2124, 198, 22, 2124, 362, 198, 27, 91, 26209, 91, 24618, 1415, 1, EOS],
            [_, _, _, _, 22, 2124, 362, 198, _, _, _, _, 24618, 1415, 1, EOS],
            [("reasoning", 4, 8, True), ("marker", 8, 12, False), ("response", 12, 15, True)],
        ),
        (  # newline-only tokens at both borders belong to the learned segments
            "a\n",
            "\nb",
            [48, 25, 2124, 198, 64, 198, 27, 91, 26209, 91, 29, 198, 65, EOS],
            [_, _, _, _, 64, 198, _, _, _, _, _, 198, 65, EOS],
            [("reasoning", 4, 6, True), ("marker", 6, 11, False), ("response", 11, 13, True)],
        ),
        (  # without reasoning the prompt still ends before it
            "",
            "14",
            [48, 25, 2124, 198, 27, 91, 26209, 91, 29, 1415, EOS],
            [_, _, _, _, _, _, _, _, _, 1415, EOS],
            [("marker", 4, 9, False), ("response", 9, 10, True)],
        ),
    ],
    ids=["merged", "newlines", "empty"],
)
def test_given_in_the_middle(phi2_tokenizer, reasoning, output, ids, labels, spans):
    row = {"instruction": "x", "reasoning": reasoning, "output": output}
    encoded = encode(MIDDLE, row, phi2_tokenizer)
    assert encoded.input_ids == ids
    assert encoded.labels == labels
    assert encoded.prompt_length == 4
    assert [(s.name, s.start, s.end, s.train) for s in encoded.spans] == [
        ("instruction", 0, 4, False),
        *spans,
        ("eos", len(ids) - 1, len(ids), True),
    ]


def test_newlines_stay_with_the_segment_that_has_them(phi2_tokenizer):
    """Offsets trimmed of white space would leave the newline tokens without a place."""
    template = listed(
        asked("a", "A\n"),
        asked("b", "\nB\n"),
        learned("c", "\n\n"),
        asked("d", "\n"),
        learned("e", "E"),
    )
    encoded = encode(template, {}, phi2_tokenizer)
    assert [(s.name, s.end - s.start) for s in encoded.spans] == [
        ("a", 2),
        ("b", 3),
        ("c", 1),  # two newlines are the token 628
        ("d", 1),
        ("e", 1),
        ("eos", 1),
    ]
    assert encoded.labels == [_, _, _, _, _, 628, _, 36, EOS]


SCRIPTS = (
    st.characters(codec="utf-8"),
    st.sampled_from("あいう漢字東京です。、"),
    st.sampled_from("한국어는"),
    st.sampled_from("عربيةमानक"),
    st.sampled_from("éüñß¿¡—“”"),
    st.sampled_from(["🗻", "👨‍👩‍👧", "❤️", "🇯🇵"]),
    st.sampled_from([" ", "  ", " " * 33, "\t", "\t\t\t", "\n", "\n\n", " \n", "\r\n", "\u3000"]),
    st.sampled_from(["<|response|>", "<|", "|>", '"', "'s", "<", ">"]),
)
TEXT = (
    st.lists(st.one_of(*SCRIPTS), max_size=30).map("".join).filter(lambda t: "endoftext" not in t)
)


def check(template, row, tokenizer):
    encoded = encode(template, row, tokenizer)
    ids, labels, spans = encoded.input_ids, encoded.labels, encoded.spans
    prompt = {key: text for key, text in row.items() if key not in ("output", "reasoning")}
    assert encode_prompt(template, prompt, tokenizer) == ids[: encoded.prompt_length]
    assert labels[: encoded.prompt_length] == [_] * encoded.prompt_length
    assert (ids[-1], labels[-1], spans[-1].name) == (EOS, EOS, "eos")
    assert [0, *(s.end for s in spans)] == [*(s.start for s in spans), len(ids)]
    assert all(s.start < s.end for s in spans)
    for span in spans:
        expected = ids[span.start : span.end] if span.train else [_] * (span.end - span.start)
        assert labels[span.start : span.end] == expected
    assert tokenizer.decode(ids[:-1]) == template.render(row)
    return encoded


@settings(max_examples=300, deadline=None, suppress_health_check=[*HealthCheck])
@forall(instruction=TEXT, output=TEXT.filter(bool))
@example(instruction="x", output="ends with newlines\n\n\n")
@example(instruction="x\n", output=" ")
def test_training_starts_like_the_prompt_and_ends_with_eos(phi2_tokenizer, instruction, output):
    encoded = check(TAGGED, {"instruction": instruction, "output": output}, phi2_tokenizer)
    trained = [label for label in encoded.labels if label != _]
    assert phi2_tokenizer.decode(trained) == f"{output}<|endoftext|>"


@settings(max_examples=300, deadline=None, suppress_health_check=[*HealthCheck])
@forall(instruction=TEXT, reasoning=TEXT, output=TEXT.filter(bool))
@example(instruction="x", reasoning="東", output="京")
def test_a_given_middle_never_hides_learned_text(phi2_tokenizer, instruction, reasoning, output):
    row = {"instruction": instruction, "reasoning": reasoning, "output": output}
    encoded = check(MIDDLE, row, phi2_tokenizer)
    # Every learned character lies in a learned token; a token over a border may add given ones.
    trained = phi2_tokenizer.decode([label for label in encoded.labels[:-1] if label != _])
    assert len(trained) >= len(reasoning + output)
    assert trained.startswith(reasoning) and trained.endswith(output)


def test_the_builtin_reasoning_row(phi2_tokenizer, reasoning_row):
    from fasttune.plugins.discovery import load_plugins

    template = load_plugins().template("reasoning")
    encoded = check(template, reasoning_row, phi2_tokenizer)
    trained = [label for label in encoded.labels if label != _]
    assert phi2_tokenizer.decode(trained) == (
        "A week has 7 days. 2 x 7 = 14.\n<|response|>14 days<|endoftext|>"
    )
    assert [s.name for s in encoded.spans if s.train] == ["reasoning", "response", "eos"]


# Other tokenizers


def bos_template():
    return processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", EOS)]
    )


def test_bos_comes_once_and_in_the_prompt():
    tokenizer = build_phi2_tokenizer()
    tokenizer.backend_tokenizer.post_processor = bos_template()
    encoded = encode(TAGGED, {"instruction": "Speak.", "output": "Hi"}, tokenizer)
    assert encoded.input_ids == [EOS, *SPEAK, 17250, EOS]
    assert encoded.labels == [_, *[_] * len(SPEAK), 17250, EOS]
    assert encoded.prompt_length == 1 + len(SPEAK)
    assert encoded.spans[0] == Span("instruction", 0, 11, False)
    assert encode_prompt(TAGGED, {"instruction": "Speak."}, tokenizer) == [EOS, *SPEAK]


def test_byte_level_inside_a_sequence_is_untrimmed_too():
    tokenizer = build_phi2_tokenizer()
    byte_level = processors.ByteLevel(trim_offsets=True)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([byte_level, bos_template()])
    trimmed = tokenizer("a\n b", return_offsets_mapping=True)
    assert trimmed["offset_mapping"] == [(0, 0), (0, 1), (1, 2), (3, 4)]

    template = listed(asked("a", "A"), asked("b", " B"), learned("c", "C"), learned("d", "\n D"))
    encoded = encode(template, {}, tokenizer)
    untrimmed = tokenizer("a\n b", return_offsets_mapping=True)
    assert untrimmed["offset_mapping"] == [(0, 0), (0, 1), (1, 2), (2, 4)]
    assert untrimmed["input_ids"] == trimmed["input_ids"]
    assert [(s.name, s.end - s.start) for s in encoded.spans] == [
        ("a", 2),
        ("b", 1),
        ("c", 1),
        ("d", 2),
        ("eos", 1),
    ]


def test_a_tokenizer_without_offsets_is_refused(phi2_tokenizer):
    class Slow:
        is_fast = False
        eos_token_id = EOS

        def __call__(self, *args, **kwargs):
            raise AssertionError("it must be refused before it is used")

    with pytest.raises(FasttuneError, match="no offsets") as caught:
        encode(TAGGED, {"instruction": "x", "output": "y"}, Slow())
    assert "Slow" in caught.value.where


def test_a_tokenizer_without_eos_is_refused(phi2_tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=phi2_tokenizer.backend_tokenizer)
    assert bare.eos_token_id is None
    with pytest.raises(FasttuneError, match="no EOS"):
        encode(TAGGED, {"instruction": "x", "output": "y"}, bare)
    with pytest.raises(FasttuneError, match="no EOS"):
        eos_id(bare)


# Templates that cannot be trained


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([asked("a", "A")], "learns nothing"),
        ([asked("a", "A"), learned("b", "")], "learns nothing"),
        ([], "learns nothing"),
        ([learned("a", "A")], "gives nothing to start from"),
        ([learned("a", ""), asked("b", "B"), learned("c", "C")], "gives nothing to start from"),
        ([asked("a", ""), learned("b", "B")], "gives nothing to start from"),
    ],
)
def test_a_template_must_give_and_then_learn(phi2_tokenizer, segments, message):
    with pytest.raises(FasttuneError, match=message) as caught:
        encode(listed(*segments), {}, phi2_tokenizer)
    assert "".join(segment.text for segment in segments) in caught.value.where


@pytest.mark.parametrize("segment", [3, "text", Segment("a", 5, True)])
def test_a_template_that_yields_no_segments_of_text(phi2_tokenizer, segment):
    with pytest.raises(FasttuneError, match="template 'listed' fails: TypeError") as caught:
        encode(listed(segment), {"instruction": "the row"}, phi2_tokenizer)
    assert f"segments() gives {segment!r}: Segment(name, text, train) is wanted" in str(
        caught.value
    )
    assert __file__ in caught.value.where and "the row" in caught.value.where


# Many rows at once


def owners(segments, offsets):
    """The segment of each token by the rule itself, token for token: the one it starts in, or the
    first learned one that it reaches."""
    ends = [sum(len(s.text) for s in segments[: at + 1]) for at in range(len(segments))]
    for start, end in offsets:
        first = next((at for at, reach in enumerate(ends) if reach > start), len(segments) - 1)
        begins = [0, *ends][: len(segments)]
        touched = [at for at in range(first, len(segments)) if at == first or begins[at] < end]
        yield next((segments[at] for at in touched if segments[at].train), segments[first])


def covering(offsets):
    return Tokens(list(range(len(offsets))), offsets.__getitem__)


PIECES = st.text('ab \n<|>"日é🥫', min_size=1, max_size=6)
PARTS = st.lists(st.tuples(PIECES, st.booleans()), min_size=1, max_size=6)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@forall(PARTS)
@example([("日", False), ("a", True)])
@example([("<|response|", False), (">", False), ('"', True), ("x", False)])
def test_every_token_has_the_owner_the_rule_gives_it(phi2_tokenizer, parts):
    segments = [Segment(str(at), text, train) for at, (text, train) in enumerate(parts)]
    text = "".join(segment.text for segment in segments)
    [tokens] = tokenize([segments], phi2_tokenizer, special=False)
    offsets = phi2_tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    spans = lay(segments, tokens, 3)
    found = [span.name for span in spans for _ in range(span.start, span.end)]
    assert found == [owner.name for owner in owners(segments, offsets)]
    assert [span.start for span in spans] == [3, *(span.end for span in spans[:-1])]


@pytest.mark.parametrize(
    "offsets",
    [
        [(0, 2), (0, 2), (2, 3)],  # two tokens of one composed character
        [(0, 1), (0, 3), (1, 3)],
        [(0, 3)],  # one token over all of it
        [],
    ],
)
@pytest.mark.parametrize("train", [(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 0, 1), (0, 0, 0)])
def test_owners_of_unusual_tokens(offsets, train):
    segments = [Segment(n, n, bool(t)) for n, t in zip("abc", train, strict=True)]
    spans = lay(segments, covering(offsets), 0)
    found = [span.name for span in spans for _ in range(span.start, span.end)]
    assert found == [owner.name for owner in owners(segments, offsets)]


def test_special_tokens_around_a_prompt_stay_with_the_text_beside_them():
    segments = [Segment(name, name, train=False) for name in "abc"]
    spans = lay(segments, covering([(0, 0), (0, 2), (2, 3), (0, 0)]), 0)
    assert [(s.name, s.start, s.end) for s in spans] == [("a", 0, 2), ("c", 2, 4)]


TEXTS = st.text('ab \n<|>"日é🥫', max_size=12)
ROWS = st.lists(
    st.fixed_dictionaries({"instruction": TEXTS, "reasoning": TEXTS, "output": PIECES}), max_size=9
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@forall(ROWS, st.integers(1, 4))
def test_many_rows_are_encoded_as_one_by_one(phi2_tokenizer, rows, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fasttune.encoding.encode.BATCH", size)
        found = list(encode_many(MIDDLE, rows, phi2_tokenizer))
    assert found == [encode(MIDDLE, row, phi2_tokenizer) for row in rows]


def test_rows_are_taken_two_batches_at_a_time_and_no_more(phi2_tokenizer, monkeypatch):
    monkeypatch.setattr("fasttune.encoding.encode.BATCH", 2)
    taken = []
    rows = ({"instruction": str(n), "output": "x"} for n in range(100) if taken.append(n) is None)
    next(encode_many(TAGGED, rows, phi2_tokenizer))
    assert len(taken) == 4


def test_the_docs_say_how_many():
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    assert f"rows are tokenized {BATCH} at a time" in text


def test_a_row_that_cannot_be_encoded_stops_the_batch(phi2_tokenizer):
    rows = [{"instruction": "x", "output": "y"}, {"instruction": "the row", "output": ""}]
    with pytest.raises(FasttuneError, match="learns nothing") as caught:
        list(encode_many(TAGGED, rows, phi2_tokenizer))
    assert "the row" in caught.value.where


# Rows that are too long


def encoded_rows(phi2_tokenizer):
    """18, 21 and 24 tokens; the prompt of each has 15."""
    outputs = ("Hi Hi", "Hi Hi Hi Hi Hi", "Hi Hi Hi Hi Hi Hi Hi Hi")
    rows = [encode(TAGGED, {"instruction": "Speak.", "output": o}, phi2_tokenizer) for o in outputs]
    assert [len(row) for row in rows] == [18, 21, 24]
    return rows


def limited(rows, max_length, overlong):
    """Place -> row, and how many were dropped and truncated."""
    counts = Counter()
    kept = dict(limit_lengths(enumerate(rows), max_length, overlong, counts))
    return kept, counts["dropped"], counts["truncated"]


def test_drop(phi2_tokenizer):
    rows = encoded_rows(phi2_tokenizer)
    # a row of exactly 21 tokens stays
    assert limited(rows, 21, "drop") == ({0: rows[0], 1: rows[1]}, 1, 0)


def test_truncate_keeps_eos(phi2_tokenizer):
    rows = encoded_rows(phi2_tokenizer)
    kept, dropped, truncated = limited(rows, 20, "truncate")
    assert (dropped, truncated) == (0, 2)
    assert list(kept) == [0, 1, 2]
    assert kept[0] is rows[0]
    assert kept[1] == Encoded(
        input_ids=[*SPEAK, 17250, 15902, 15902, 15902, EOS],
        spans=[
            Span("instruction", 0, 10, False),
            Span("response", 10, 15, False),
            Span("response", 15, 19, True),
            Span("eos", 19, 20, True),
        ],
        prompt_length=15,
    )
    assert kept[1].labels == [*[_] * 15, 17250, 15902, 15902, 15902, EOS]
    assert kept[1].trained == 5


def test_truncate_drops_spans_that_are_cut_off(phi2_tokenizer):
    row = {"instruction": "x", "reasoning": "7 x 2\n", "output": "14"}
    long = encode(MIDDLE, row, phi2_tokenizer)
    short = limited([long], 9, "truncate")[0][0]
    assert [s.name for s in short.spans] == ["instruction", "reasoning", "eos"]
    assert short.input_ids == [48, 25, 2124, 198, 22, 2124, 362, 198, EOS]
    assert short.labels == [_, _, _, _, 22, 2124, 362, 198, EOS]


@pytest.mark.parametrize(("max_length", "kept"), [(17, [0, 1, 2]), (16, []), (1, [])])
def test_truncate_drops_a_row_without_room_for_a_learned_token(phi2_tokenizer, max_length, kept):
    found, dropped, _truncated = limited(encoded_rows(phi2_tokenizer), max_length, "truncate")
    assert list(found) == kept and dropped == 3 - len(kept)


def test_error_names_the_row(phi2_tokenizer):
    rows = encoded_rows(phi2_tokenizer)
    assert len(limited(rows, 24, "error")[0]) == 3
    with pytest.raises(FasttuneError, match="21 tokens, more than 20") as caught:
        limited(rows, 20, "error")
    assert caught.value.where == "row 2"
