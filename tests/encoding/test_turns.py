"""Conversations as ids: a border before each answer, EOS after it, as `chat` starts from."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from fasttune_plugins.chatml import CHATML
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fasttune import FasttuneError, Template, check_template, learn
from fasttune import given as given_
from fasttune.config import load_config
from fasttune.data.rows import StoredRows
from fasttune.encoding.batches import pad
from fasttune.encoding.cache import encode_rows
from fasttune.encoding.encode import (
    IGNORED,
    encode,
    encode_prompt,
    limit_lengths,
    response_tokens,
    without_eos,
)
from fasttune.formats.parts import END, Segment
from fasttune.formats.row import Row
from fasttune.formats.template import split_turns
from fasttune.models.tokenizer import end_turns_with, load_tokenizer
from tests.conftest import build_phi2_tokenizer

APPLIED = (  # as tokenizers with ChatML have it, Qwen's for one
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def with_bos():
    tokenizer = build_phi2_tokenizer()
    bos = ("<|endoftext|>", tokenizer.bos_token_id)
    adds = processors.TemplateProcessing("<|endoftext|> $A", "$A $B", [bos])
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.Sequence([backend.post_processor, adds])
    return tokenizer


def with_im_end():
    """As a model for ChatML has it: both markers are tokens, and the end of a turn is EOS."""
    tokenizer = build_phi2_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    return tokenizer


def with_words():
    """As SentencePiece does: blanks belong to the word behind them, bytes stand for the rest."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=tokens, show_progress=False)
    backend.train_from_iterator(["a user asks the assistant", "the assistant says so"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    make.__name__: make() for make in (build_phi2_tokenizer, with_bos, with_im_end, with_words)
}
tokenizers = pytest.mark.parametrize("name", TOKENIZERS)


# What is learned has text around it, and there is nothing between two turns.
PLAIN = Template(
    name="plain",
    conversations=True,
    parts=[
        given_("once", "Once.", once=True),
        given_("instruction", "Q: {instruction} A:"),
        learn("reasoning", " ({reasoning})"),
        learn("response", " {output}!"),
    ],
)
ENDED = msgspec.structs.replace(CHATML, name="ended", end="<|im_end|>")


class Computed(Template):
    """ChatML, written by code."""

    def segments(self, row):
        for number in range(len(row.turns)):
            turn = row.turn(number)
            if number:
                yield END
            else:
                yield Segment("system", f"<|im_start|>system\n{turn['system']}<|im_end|>", False)
            context = f"\n\n{turn['input']}" if turn.get("input") else ""
            asked = f"\n<|im_start|>user\n{turn['instruction']}{context}<|im_end|>\n"
            yield Segment("instruction", asked, False)
            yield Segment("response", "<|im_start|>assistant\n", False)
            yield Segment("response", turn.get("output", ""), True)


COMPUTED = Computed(name="computed", system=CHATML.system, conversations=True)
TEMPLATES = (CHATML, PLAIN, COMPUTED)
templates = pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)

text = st.text(
    st.sampled_from(" \n\tab\"'.<|>AQ:\u00e9日🗼_") | st.characters(exclude_categories=("Cs",)),
    min_size=1,
    max_size=12,
)
exchanges = st.lists(
    st.fixed_dictionaries({"instruction": text, "reasoning": text, "output": text}),
    min_size=1,
    max_size=4,
)
TALK = [
    {"instruction": "Hi.", "output": "Hello."},
    {"instruction": "Add 2 and 3.", "output": "5"},
]


def row(said, **more):
    return Row.of({**said[-1], **more}, said[:-1])


def test_a_conversation_turn_by_turn():
    assert [
        [(s.text, s.train) for s in turn] for turn in split_turns(CHATML.rendered(row(TALK)))
    ] == [
        [
            ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>", False),
            ("\n<|im_start|>user\nHi.<|im_end|>\n", False),
            ("<|im_start|>assistant\n", False),
            ("Hello.", True),
        ],
        [
            ("\n<|im_start|>user\nAdd 2 and 3.<|im_end|>\n", False),
            ("<|im_start|>assistant\n", False),
            ("5", True),
        ],
    ]
    assert CHATML.render(row(TALK[:1])) == CHATML.render(TALK[0])
    assert not [s for s in CHATML.rendered(TALK[0]) if s == END]


def test_ids_and_labels(phi2_tokenizer):
    coded = encode(PLAIN, row(TALK), phi2_tokenizer)
    eos = phi2_tokenizer.eos_token
    assert phi2_tokenizer.decode(coded.input_ids) == (
        f"Once.Q: Hi. A: () Hello.!{eos}Q: Add 2 and 3. A: () 5!{eos}"
    )
    learned = [token for token in coded.labels if token != IGNORED]
    assert phi2_tokenizer.decode(learned) == f" () Hello.!{eos} () 5!{eos}"
    assert [(s.name, s.train) for s in coded.spans] == [
        ("once", False),
        *[("instruction", False), ("reasoning", True), ("response", True), ("eos", True)] * 2,
    ]
    assert [s.start for s in coded.spans[1:]] == [s.end for s in coded.spans[:-1]]
    quiet = without_eos(coded)
    assert [label for label in quiet.labels if label != IGNORED] == [
        token for token in learned if token != phi2_tokenizer.eos_token_id
    ]


@tokenizers
@templates
@settings(max_examples=60, deadline=None)
@given(exchanges, st.none() | text)
def test_before_every_answer_are_the_ids_that_chat_starts_from(template, name, said, system):
    tokenizer = TOKENIZERS[name]
    more = {"system": system} if system else {}
    whole = encode(template, row(said, **more), tokenizer)
    ends = [span.end for span in whole.spans if span.name == "eos"]
    assert len(ends) == len(said) and ends[-1] == len(whole)
    for at in range(len(said)):
        asked = row([*said[:at], {"instruction": said[at]["instruction"]}], **more)
        ids = encode_prompt(template, asked, tokenizer)
        assert whole.input_ids[: len(ids)] == ids
        assert all(
            label == IGNORED for label in whole.labels[(ends[at - 1] if at else 0) : len(ids)]
        )
        assert whole.labels[len(ids) : ends[at]] == whole.input_ids[len(ids) : ends[at]]
        assert whole.input_ids[ends[at] - 1] == tokenizer.eos_token_id
    assert whole.prompt_length == len(ids)


spoken = text.filter(lambda said: not said[0].isspace())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(text, spoken), min_size=1, max_size=4), text.filter(str.strip))
def test_chatml_has_the_ids_of_apply_chat_template(said, system):
    from fasttune.data.conversations import from_messages

    said = [(question.strip() or "?", answer) for question, answer in said]
    messages = [{"role": "system", "content": system}]
    for question, answer in said:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    tokenizer = TOKENIZERS["with_im_end"]

    def applied(messages, asking):
        return tokenizer.apply_chat_template(
            messages, chat_template=APPLIED, add_generation_prompt=asking, return_dict=False
        )

    newline = tokenizer("\n", add_special_tokens=False).input_ids
    whole = encode(CHATML, from_messages(messages), tokenizer).input_ids
    assert [*whole, *newline] == applied(messages, asking=False)
    asked = from_messages(messages[:-1])
    assert encode_prompt(CHATML, asked, tokenizer) == applied(messages[:-1], asking=True)


def test_an_answer_that_begins_with_white_space_keeps_the_border(phi2_tokenizer):
    said = [{"instruction": "a", "output": "\n\nb"}, {"instruction": "c", "output": "d"}]
    ids = encode(CHATML, row(said), phi2_tokenizer).input_ids
    start = encode_prompt(CHATML, {"instruction": "a"}, phi2_tokenizer)
    assert ids[: len(start)] == start
    assert phi2_tokenizer.decode(ids[len(start) :]).startswith("\n\nb<|endoftext|>\n<|im_start|>")


def test_a_row_that_is_too_long_loses_whole_turns(phi2_tokenizer):
    said = [{"instruction": "Hi.", "output": word} for word in ("one two three", "four", "five")]
    whole = encode(PLAIN, row(said), phi2_tokenizer)
    two = encode(PLAIN, row(said[:2]), phi2_tokenizer)
    one = encode(PLAIN, row(said[:1]), phi2_tokenizer)

    def cut(length):
        counts: Counter[str] = Counter()
        kept = [coded for _, coded in limit_lengths([(0, whole)], length, "truncate", counts)]
        assert counts.total() == (length < len(whole))
        return kept[0] if kept else None

    assert cut(len(whole)) == whole
    assert cut(len(whole) - 1) == cut(len(two)) == two
    assert cut(len(two) - 1) == cut(len(one)) == one
    short = cut(len(one) - 1)
    assert len(short) == len(one) - 1
    assert (short.input_ids[-1], short.prompt_length) == (one.input_ids[-1], one.prompt_length)
    assert cut(one.prompt_length) is None
    with pytest.raises(FasttuneError, match=f"has {len(whole)} tokens"):
        list(limit_lengths([(0, whole)], len(two), "error", Counter()))


def test_conversations_on_disk(phi2_tokenizer):
    rows = StoredRows()
    for said in (TALK, TALK[:1]):
        rows.append(row(said))
    config = load_config()
    stored = encode_rows(CHATML, rows, phi2_tokenizer, config, "training")
    assert list(stored) == [encode(CHATML, row(said), phi2_tokenizer) for said in (TALK, TALK[:1])]
    quiet = load_config(None, [("train.learn_eos", False)])
    eos = phi2_tokenizer.eos_token_id
    unlearned = encode_rows(CHATML, rows, phi2_tokenizer, quiet, "training")
    assert [coded.input_ids.count(eos) for coded in unlearned] == [2, 1]
    assert [coded.labels.count(eos) for coded in unlearned] == [0, 0]
    batch = pad([*stored], ["response", "eos"], eos)
    assert (batch["targets"] == eos).sum() == 3


def test_the_response_is_that_of_the_last_turn(phi2_tokenizer):
    ids = encode(PLAIN, row(TALK), phi2_tokenizer).input_ids
    places = response_tokens(PLAIN, row(TALK), phi2_tokenizer)
    assert phi2_tokenizer.decode(ids[places.start : places.stop]) == " 5"


def test_every_turn_has_the_columns_of_the_row_and_an_input_of_its_own():
    said = row(TALK, system="Talk.", input="context", language="en")
    first, second = said.turn(0), said.turn(1)
    assert first == {"system": "Talk.", "instruction": "Hi.", "output": "Hello.", "language": "en"}
    assert second["input"] == "context" and second["system"] == "Talk."
    assert CHATML.prompt(said) == (
        "<|im_start|>system\nTalk.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
        "<|im_start|>assistant\nHello.\n<|im_start|>user\nAdd 2 and 3.\n\ncontext<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@settings(max_examples=60, deadline=None)
@given(exchanges, st.none() | text, st.none() | text)
def test_computed_text_is_encoded_as_declared_text(said, system, context):
    more = {name: value for name, value in (("system", system), ("input", context)) if value}
    talk = row(said, **more)
    assert COMPUTED.render(talk) == CHATML.render(talk)
    assert COMPUTED.prompt(talk) == CHATML.prompt(talk)
    tokenizer = TOKENIZERS["with_im_end"]
    assert encode(COMPUTED, talk, tokenizer) == encode(CHATML, talk, tokenizer)


# A format's own end of turn


def test_a_format_s_own_end_is_learned_after_every_turn():
    tokenizer = build_phi2_tokenizer()
    end = tokenizer.add_tokens("<|im_end|>", special_tokens=True) and len(tokenizer) - 1
    plain = encode(CHATML, row(TALK), tokenizer)
    assert end_turns_with(tokenizer, ENDED.end) is tokenizer and tokenizer.eos_token_id == end
    coded = encode(ENDED, row(TALK), tokenizer)
    turned = [end if token == 50256 else token for token in plain.input_ids]
    assert coded.input_ids == turned and 50256 not in turned
    ends = [span.end - 1 for span in coded.spans if span.name == "eos"]
    assert [coded.labels[at] for at in ends] == [end, end] and ends[-1] == len(coded) - 1
    assert coded.labels.count(end) == 2  # those of the given parts are not learned
    assert (
        encode_prompt(ENDED, row([TALK[0], {"instruction": "Add 2 and 3."}]), tokenizer)
        == (coded.input_ids[: coded.prompt_length])
    )


def test_a_tokenizer_without_the_end_of_the_format_is_refused(tiny_phi, tmp_path):
    with pytest.raises(FasttuneError, match=r"ends a turn with '<\|im_end\|>'") as caught:
        load_tokenizer(str(tiny_phi), ENDED.end)
    assert str(tiny_phi) in caught.value.where and "remove `end`" in caught.value.hint
    assert load_tokenizer(str(tiny_phi), "").eos_token == "<|endoftext|>"
    assert load_tokenizer(str(tiny_phi), "  ").eos_token == "  "  # one token, if an odd one


@tokenizers
@templates
def test_the_contract(template, name):
    bad = [r for r in check_template(template, TOKENIZERS[name]) if r.status in ("failure",)]
    assert bad == []


class Forgetful(Computed):
    """Writes a turn otherwise once it is no longer the last one."""

    def segments(self, row):
        for number, turn in enumerate(row.turns):
            if number:
                yield END
            yield Segment("instruction", f"Q: {turn['instruction']}{len(row.turns)}", False)
            yield Segment("response", turn.get("output", ""), True)


class Loose(Computed):
    """Numbers its turns, and begins with another number each time."""

    def segments(self, row):
        asked.append(row)
        for number, turn in enumerate(row.turns):
            if number:
                yield END
            yield Segment("instruction", f"Q{len(asked) + number}: {turn['instruction']}", False)
            yield Segment("response", turn.get("output", ""), True)


asked = []


def failures(template):
    found = check_template(template, TOKENIZERS["build_phi2_tokenizer"])
    return {result.check: result.rows for result in found if result.status == "failure"}


def test_what_the_check_finds_in_turns():
    assert "repeatable" in failures(Loose(name="loose", conversations=True))
    assert failures(Forgetful(name="forgetful", conversations=True)).keys() == {"ids"}


def test_conversations_count_for_the_identity():
    def later(text):
        parts = [*CHATML.parts[:-1], learn("response", text)]
        return msgspec.structs.replace(CHATML, parts=parts)

    same, spaced = later("{output}"), later(" {output}")
    alone = msgspec.structs.replace(CHATML, conversations=False)
    assert same.identity == CHATML.identity
    assert len({each.identity for each in (CHATML, spaced, alone, ENDED, COMPUTED)}) == 5


def test_an_error_in_a_turn_is_told_with_its_line():
    class Broken(Computed):
        def segments(self, row):
            yield Segment("instruction", row["nothing"], False)

    with pytest.raises(FasttuneError, match="template 'broken' fails: KeyError") as caught:
        Broken(name="broken").render({"instruction": "a"})
    assert "test_turns.py" in caught.value.where and 'row["nothing"]' in caught.value.where
