"""Likelihoods against transformers' own logits, and loops while decoding, on a tiny Phi."""

from __future__ import annotations

import io
import json
import math
import shutil

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest
import torch
from transformers import AutoModelForCausalLM

from fasttune import Segment, Template, given, learn
from fasttune.config import ModelConfig
from fasttune.encoding.encode import encode, response_tokens
from fasttune.formats.row import Row
from fasttune.generation import likelihood
from fasttune.generation.decoding import LoopStop
from fasttune.generation.generator import Generator, Sampling
from fasttune.generation.likelihood import answer_and_measure, with_likelihoods
from fasttune.models.head import decoder
from fasttune.plugins.discovery import load_plugins
from fasttune.plugins.metric import Answer

TEMPLATES = {name: template for name, (template, _) in load_plugins().templates.items()}
CYCLE = 20
ROWS = [
    Row.of(row)
    for row in (
        {"instruction": "Add 2 and 3.", "reasoning": "2 + 3 = 5.", "output": "5"},
        {"instruction": "日本の首都は？", "reasoning": "首都を思い出す。", "output": "東京です。"},
        {"instruction": "Say it.", "reasoning": "It is quoted.", "output": '"Quoted", she said.'},
    )
]


@pytest.fixture(scope="module")
def generator(tiny_phi):
    config = ModelConfig(name=str(tiny_phi), quantization="none", precision="fp32")
    return Generator.load(config, TEMPLATES["reasoning"])


@pytest.fixture(scope="module")
def reference(tiny_phi):
    return AutoModelForCausalLM.from_pretrained(tiny_phi, dtype=torch.float32).eval()


def with_template(generator, name: str) -> Generator:
    return Generator(generator.model, generator.tokenizer, TEMPLATES[name], generator.choices)


@torch.no_grad()
def log2_probabilities(model, ids: list[int]) -> list[float]:
    """log2 of the probability of each token after those before it; the first has none."""
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    found = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids[1:])[:, None])
    return [0.0, *(found[:, 0] / math.log(2)).tolist()]


# Which tokens are the response's


@pytest.mark.parametrize("name", ["alpaca", "reasoning", "multilingual"])
@pytest.mark.parametrize("row", ROWS, ids=["number", "japanese", "quote"])
def test_the_tokens_of_the_response_hold_its_text_and_little_more(name, row, phi2_tokenizer):
    template = TEMPLATES[name]
    encoded = encode(template, row, phi2_tokenizer)
    places = response_tokens(template, row, phi2_tokenizer)
    text = phi2_tokenizer.decode([encoded.input_ids[at] for at in places])
    assert text.endswith(row["output"])
    assert text.removesuffix(row["output"]) in ("", ">")  # a token of the tag and the quote
    assert places.stop == len(encoded) - 1  # EOS is not among them
    assert all(encoded.labels[at] != -100 for at in places)


def test_the_response_is_found_by_rendering_not_by_searching(phi2_tokenizer):
    parts = [given("q", "{instruction}\n"), learn("response", "5, {output} and 5.")]
    echo = Template(name="echo", parts=parts)
    places = response_tokens(echo, ROWS[0], phi2_tokenizer)
    encoded = encode(echo, ROWS[0], phi2_tokenizer)
    before = phi2_tokenizer.decode(encoded.input_ids[: places.start])
    assert before == "Add 2 and 3.\n5," and len(places) == 1


def test_where_a_template_changes_the_text_its_whole_section_counts(phi2_tokenizer):
    class Shout(Template):
        def segments(self, row):
            yield Segment("q", f"{row['instruction']}\n", False)
            yield Segment("start", "A: ", True)
            yield Segment("response", row["output"].upper() or "nothing", True)

    shout = Shout(name="shout")
    row = Row.of({"instruction": "Greet.", "output": "hello you"})
    encoded = encode(shout, row, phi2_tokenizer)
    places = response_tokens(shout, row, phi2_tokenizer)
    assert phi2_tokenizer.decode([encoded.input_ids[at] for at in places]).strip() == "HELLO YOU"


# Likelihoods


@pytest.mark.parametrize("batch_size", [1, 3])
def test_likelihoods_are_those_of_the_reference_logits(generator, reference, batch_size):
    own = ["Two and three.", "", "She spoke."]
    answers = [
        Answer(row, "", {"reasoning": text, "response": "x"}, "length", 1)
        for row, text in zip(ROWS, own, strict=True)
    ]
    measured = with_likelihoods(generator, answers, batch_size)
    for row, text, answer in zip(ROWS, own, measured, strict=True):
        found = answer.likelihood
        assert found.bytes == len(row["output"].encode())
        for bits, as_seen in (
            (found.bits_reference, row),
            (found.bits, row.with_turn({"reasoning": text})),
        ):
            encoded = encode(generator.template, as_seen, generator.tokenizer)
            places = response_tokens(generator.template, as_seen, generator.tokenizer)
            log2 = log2_probabilities(reference, encoded.input_ids)
            assert bits == pytest.approx(-sum(log2[at] for at in places), rel=1e-5)
            if as_seen is row:
                assert found.eos == pytest.approx(2 ** log2[-1], rel=1e-4)


@pytest.mark.parametrize("batch_size", [2, 3])
def test_the_beginning_of_all_rows_goes_through_the_model_once(generator, monkeypatch, batch_size):
    answers = [Answer(row, "", {"reasoning": "", "response": "x"}, "length", 1) for row in ROWS]
    seen = []
    hook = decoder(generator.model).register_forward_pre_hook(
        lambda module, inputs, named: seen.append(tuple(named["input_ids"].shape)),
        with_kwargs=True,
    )
    shared = with_likelihoods(generator, answers, batch_size)
    passes, seen[:] = [*seen], []
    monkeypatch.setattr(likelihood, "plain_cache", lambda model: None)
    plain = with_likelihoods(generator, answers, batch_size)
    hook.remove()
    rows, begun = passes[0]
    assert rows == 1 and begun > 20  # the system text
    halves = [passes[: len(passes) // 2], passes[len(passes) // 2 :]]
    for part, whole in zip(halves, (seen[: len(seen) // 2], seen[len(seen) // 2 :]), strict=True):
        assert part[0] == (1, begun)
        assert part[1:] == [(rows, width - begun) for rows, width in whole]
    for one, other in zip(shared, plain, strict=True):
        assert one.likelihood.bits == pytest.approx(other.likelihood.bits, rel=1e-5)
        assert one.likelihood.eos == pytest.approx(other.likelihood.eos, rel=1e-4)


def test_without_reasoning_both_likelihoods_are_the_same(generator):
    answers = [Answer(row, "x", {"response": "x"}, "length", 1) for row in ROWS]
    for answer in with_likelihoods(with_template(generator, "alpaca"), answers, 2):
        assert answer.likelihood.bits == answer.likelihood.bits_reference > 0


def test_evaluating_keeps_the_order_of_the_rows(generator):
    rows = [*ROWS, ROWS[0].with_turn({"instruction": "Add 4 and 5, " * 9}), ROWS[1]]
    done = []
    answers = answer_and_measure(
        generator, rows, max_new_tokens=6, batch_size=2, report=done.append
    )
    assert [answer.row for answer in answers] == rows and done == [2, 4, 5]
    alone = list(generator.answers(rows, Sampling(max_new_tokens=6), batch_size=1))
    assert [a.text for a in answers] == [a.text for a in alone]
    assert all(answer.likelihood is not None for answer in answers)


# Loops


def feed(stop: LoopStop, rows: list[list[int]], prompt=(0,)) -> list[list[bool]]:
    """What the criterion says after each token of a batch."""
    prompts = torch.tensor([[*prompt]] * len(rows))
    said = []
    for length in range(1, len(rows[0]) + 1):
        ids = torch.cat([prompts, torch.tensor([row[:length] for row in rows])], 1)
        said.append(stop(ids, None).tolist())
    return said


def test_a_phrase_is_a_loop_once_it_stands_there_three_times():
    phrase = list(range(1, 21))
    stop = LoopStop(1, 1, eos=0)
    said = feed(stop, [[99, *phrase * 4]])
    assert stop.loops == {0: 1 + 3 * 20}
    assert said.index([True]) == 3 * 20  # the token that completes the third copy


def test_a_short_ruler_is_no_loop():
    stop = LoopStop(1, 1, eos=0)
    feed(stop, [[7] * LoopStop.SHORTEST])
    assert stop.loops == {}
    stop = LoopStop(1, 1, eos=0)
    feed(stop, [[7] * (LoopStop.SHORTEST + 1)])
    assert stop.loops == {0: LoopStop.SHORTEST + 1}


def test_padding_after_eos_is_no_loop():
    """Phi's padding token is EOS itself; a row that ended is padded while others go on."""
    for pad in (0, 5):
        stop = LoopStop(2, 1, eos=0)
        feed(stop, [[1, 2, 0, *[pad] * 60], [*range(1, 64)]])
        assert stop.loops == {}


def test_the_prompt_does_not_count():
    stop = LoopStop(1, 30, eos=0)
    feed(stop, [[8] * 10], prompt=[8] * 30)
    assert stop.loops == {}


@pytest.fixture(scope="module")
def cycling(tiny_phi, tmp_path_factory):
    """A Phi whose layers add nothing and whose head answers token x with the next one of the
    CYCLE tokens that x belongs to."""
    model = AutoModelForCausalLM.from_pretrained(tiny_phi, dtype=torch.float32)
    tokens = torch.arange(model.config.vocab_size)
    following = tokens // CYCLE * CYCLE + (tokens + 1 - tokens // CYCLE * CYCLE) % CYCLE
    with torch.no_grad():
        for layer in model.model.layers:
            for linear in (layer.self_attn.dense, layer.mlp.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
        model.lm_head.weight[following] = model.model.embed_tokens.weight[tokens]
    folder = tmp_path_factory.mktemp("cycling")
    model.save_pretrained(folder)
    for file in tiny_phi.glob("*token*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.slow
def test_stopping_at_a_loop_changes_no_token_before_it(cycling):
    config = ModelConfig(name=str(cycling), quantization="none", precision="fp32")
    cycling = Generator.load(config, TEMPLATES["alpaca"])
    free = list(cycling.answers(ROWS, Sampling(max_new_tokens=80), 3))
    stopping = Sampling(max_new_tokens=80, stop_loops=True)
    stopped = list(cycling.answers(ROWS, stopping, 3))
    assert [answer.stop for answer in free] == ["length"] * 3
    for whole, cut in zip(free, stopped, strict=True):
        assert cut.stop == "loop" and cut.tokens == 3 * CYCLE
        assert whole.text.startswith(cut.text) and len(cut.text) < len(whole.text)
    pieces: list[str] = []
    streamed = cycling.stream(ROWS[0], stopping, pieces.append)
    assert streamed == stopped[0] and "".join(pieces) == streamed.text


@pytest.mark.slow
def test_generate_stops_a_loop_when_asked_and_chat_by_itself(cycling, capsys, monkeypatch):
    from fasttune.cli import main

    def said(*words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([*words, "-t", "alpaca", "--max-new-tokens", "80"])
        assert not stopped.value.code
        return capsys.readouterr().out

    ask = ("generate", str(cycling), "Add 2 and 3.")
    assert json.loads(said(*ask, "--json"))["stop"] == "length"
    assert json.loads(said(*ask, "--json", "--stop-loops"))["stop"] == "loop"
    assert "loop: repeated itself" in said(*ask, "--stop-loops")
    for words, reason in ((), "[loop, 60 tokens]"), (("--no-stop-loops",), "[length, 80 tokens]"):
        monkeypatch.setattr("sys.stdin", io.StringIO("Add 2 and 3.\n"))
        assert reason in said("chat", str(cycling), *words)
