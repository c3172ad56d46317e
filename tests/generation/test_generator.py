"""Batches over a shared beginning against prompts continued alone by transformers, in fp32."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest
import torch
from fasttune_plugins.chatml import CHATML
from msgspec import structs
from tokenizers import processors
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM, pipeline

import fasttune.generation.decoding as decoding
import fasttune.generation.generator as generate
from fasttune import FasttuneError, Template, given, learn
from fasttune.config import LoraConfig, ModelConfig
from fasttune.encoding.batches import left_pad
from fasttune.encoding.encode import encode_prompt
from fasttune.formats.row import Row
from fasttune.generation.decoding import Decoding, plain_cache
from fasttune.generation.generator import Generator, Sampling
from fasttune.models.load import add_lora
from tests.conftest import choices_for, load_model, wake_adapters

PREFIX = list(range(100, 120))
SHARING = [[*PREFIX, *range(200 * n, 203 * n)] for n in (4, 1, 9, 2)]
PROMPTS = {
    "a beginning shared": SHARING,
    "nothing shared": [[at, *prompt] for at, prompt in enumerate(SHARING, 5)],
    "one prompt is the beginning": [*SHARING, PREFIX],
    "all the same": [SHARING[0]] * 3,
    "one token each": [[7], [8]],
}
SHARED = dict(zip(PROMPTS, (20, 0, 19, len(SHARING[0]) - 1, 0), strict=True))
NEW = 9
FP32 = choices_for(ModelConfig(precision="fp32"))


# A prompt whose length is that of the row, behind a constant beginning.
WORDS = Template(
    name="words",
    parts=[
        given("system", "You answer with numbers and with nothing else. "),
        given("question", "{instruction}\n"),
        learn("response", "{output}"),
    ],
)


@pytest.fixture(scope="module", params=["tiny_phi", "tiny_llama"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(folder):
    """As a run leaves it: with LoRA adapters that do something."""
    return with_adapters(ModelConfig(name=str(folder), quantization="none", precision="fp32"))


def with_adapters(config: ModelConfig):
    choices = choices_for(config)
    model, _ = load_model(config, choices)
    model, _ = add_lora(model, LoraConfig(r=4), 0, choices)
    return wake_adapters(model, std=0.05, seed=0).eval()


@pytest.fixture(scope="module")
def generator(tiny_llama):
    config = ModelConfig(name=str(tiny_llama), quantization="none", precision="fp32")
    return Generator.load(config, WORDS)


def test_a_bases_own_generation_settings_change_nothing(generator, tiny_llama, tmp_path):
    """Some would also crash: beams do not stream, and stop strings need a tokenizer."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    own = {
        "num_beams": 3, "stop_strings": ["a"], "penalty_alpha": 0.6, "no_repeat_ngram_size": 1,
        "do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "min_new_tokens": NEW,
        "suppress_tokens": list(range(2000)), "max_length": 3, "use_cache": False,
        "eos_token_id": [*range(4000)], "forced_bos_token_id": 7, "renormalize_logits": True,
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(own))
    config = ModelConfig(name=str(folder), quantization="none", precision="fp32")
    row, shown = {"instruction": "Name a river."}, []
    sampling = Sampling(max_new_tokens=NEW)
    answer = Generator.load(config, WORDS).stream(row, sampling, shown.append)
    assert answer.tokens == NEW
    assert answer.text == "".join(shown) == next(generator.answers([row], sampling, 1)).text


def test_a_special_token_without_an_embedding_is_refused(generator):
    tokenizer = copy.deepcopy(generator.tokenizer)
    tokenizer.add_tokens([f"<image{n}>" for n in range(100)], special_tokens=True)
    asked = Generator(generator.model, tokenizer, WORDS, generator.choices)
    with pytest.raises(FasttuneError, match="the text contains <image99>") as caught:
        asked.answer("Describe <image99>.", max_new_tokens=1)
    assert caught.value.where == "id 4195 of 4160"


def settings(eos: int = 4057, **more) -> GenerationConfig:
    return GenerationConfig(
        **{"max_new_tokens": NEW, "eos_token_id": eos, "pad_token_id": eos, **more}
    )


@torch.inference_mode()
def alone(model, prompt: list[int], config: GenerationConfig) -> list[int]:
    """What transformers itself gives for one prompt, up to EOS."""
    output = model.generate(torch.tensor([prompt]), generation_config=config)
    return cut(output[0, len(prompt) :].tolist(), config.eos_token_id)


def cut(ids: list[int], eos: int) -> list[int]:
    return ids[: ids.index(eos) + 1] if eos in ids else ids


@pytest.fixture
def prefills(monkeypatch):
    """The shape of the tokens of every prefill that really ran."""
    seen: list[tuple[int, int]] = []
    prefill = Decoding._prefill

    def watched(self, cache, ids, mask):
        before = cache.get_seq_length()
        prefill(self, cache, ids, mask)
        if cache.get_seq_length() > before:
            seen.append((len(ids), cache.get_seq_length() - before))

    monkeypatch.setattr(Decoding, "_prefill", watched)
    return seen


@pytest.mark.parametrize("kind", PROMPTS)
def test_tokens_are_those_of_each_prompt_alone(model, kind, monkeypatch, prefills):
    monkeypatch.setattr(decoding, "SPAN", 4)
    prompts = PROMPTS[kind]
    continued = Decoding(model, FP32, settings(), False, prompts)
    assert continued.shared == SHARED[kind]
    halves = [continued(prompts[:2]), continued(prompts[2:])] if len(prompts) > 2 else []
    halves = halves or [continued(prompts)]
    assert [ids for half in halves for ids, _ in half] == [
        alone(model, prompt, settings()) for prompt in prompts
    ]
    # The beginning went through once, for one row; the batches' own prefills start behind it.
    once = [(1, SHARED[kind])] if SHARED[kind] else []
    assert prefills[: len(once)] == once
    longest = [max(map(len, part)) for part in (prompts[:2], prompts[2:]) if part]
    rest = [wide - 1 - SHARED[kind] for wide in longest]
    assert [width for _, width in prefills[len(once) :]] == [width for width in rest if width]


@pytest.mark.parametrize("kind", ["a beginning shared", "nothing shared"])
def test_logits_behind_the_cache_are_those_of_the_plain_model(model, kind):
    prompts = PROMPTS[kind]
    continued = Decoding(model, FP32, settings(), False, prompts)
    inputs = left_pad(prompts, continued.shared)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    cache = plain_cache(model)
    with torch.inference_mode():
        continued._prefill(cache, ids, mask)
        logits = model(
            input_ids=ids[:, -1:],
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
        ).logits[:, -1]
        expected = torch.stack([model(torch.tensor([p])).logits[0, -1] for p in prompts])
    assert (logits - expected).abs().max() < 1e-4


def test_prompts_that_are_alike_go_through_the_model_once(model, prefills):
    twice = [SHARING[0], SHARING[1], SHARING[0], SHARING[1], SHARING[1]]
    found = Decoding(model, FP32, settings(), False, twice)(twice)
    assert [ids for ids, _ in found] == [alone(model, prompt, settings()) for prompt in twice]
    assert [rows for rows, _ in prefills] == [1, 2]  # the beginning, and what is behind it


def test_rows_that_have_ended_leave_the_batch(model, monkeypatch):
    monkeypatch.setattr(decoding, "SPAN", 2)
    free = [alone(model, prompt, settings()) for prompt in SHARING]
    eos = free[1][2]  # the second prompt ends with its third token, or before
    sizes = []
    continuing = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **how: sizes.append(len(how["input_ids"])) or continuing(**how)
    )
    found = Decoding(model, FP32, settings(eos), False, SHARING)(SHARING)
    assert [cut(ids, eos) for ids, _ in found] == [cut(ids, eos) for ids in free]
    assert sizes[0] == 4 and sizes[-1] < 4 and sizes == sorted(sizes, reverse=True)


def test_a_repetition_penalty_does_not_see_the_padding(model):
    penalised = settings(repetition_penalty=5.0)
    found = Decoding(model, FP32, penalised, False, SHARING)(SHARING)
    assert [ids for ids, _ in found] == [alone(model, prompt, penalised) for prompt in SHARING]


def test_nf4_models_share_the_beginning_too(tiny_phi, prefills):
    model = with_adapters(ModelConfig(name=str(tiny_phi), quantization="nf4", precision="fp32"))
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    found = Decoding(model, FP32, settings(), False, SHARING)(SHARING)
    assert [ids for ids, _ in found] == [alone(model, prompt, settings()) for prompt in SHARING]
    assert prefills[0] == (1, len(PREFIX))


def test_a_sliding_window_takes_the_plain_path(tiny_llama, prefills, monkeypatch):
    monkeypatch.setattr(decoding, "SPAN", 4)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=2000, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=8,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    assert plain_cache(model) is None
    continued = Decoding(model, FP32, settings(3), False, SHARING)
    assert continued.shared == 0
    found = [cut(ids, 3) for ids, _ in continued(SHARING)]
    assert found == [alone(model, prompt, settings(3)) for prompt in SHARING] and not prefills


# Rows of a file


def rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"{n} " * (1 + 7 * n % 10)} for n in range(count)]


def test_answers_come_in_order_whatever_the_batches_are(generator, monkeypatch):
    monkeypatch.setattr(generate, "WINDOW", 2)
    sampling = Sampling(max_new_tokens=5)
    widths: list[list[int]] = []
    call = Decoding.__call__
    monkeypatch.setattr(
        Decoding, "__call__",
        lambda self, prompts, *more: widths.append([*map(len, prompts)])
        or call(self, prompts, *more),
    )  # fmt: skip
    done: list[int] = []
    answers = generator.answers(rows(11), sampling, 3, done.append)
    first = next(answers)
    assert done == [3, 6]  # one window, not the whole file
    together = [first, *answers]
    assert done == [3, 6, 9, 11]
    for a, b in ((0, 2), (2, 4)):  # sorted within a window, the longest first
        inside = [width for batch in widths[a:b] for width in batch]
        assert inside == sorted(inside, reverse=True)
    assert [answer.row for answer in together] == rows(11)
    assert together == [generator.stream(row, sampling, lambda piece: None) for row in rows(11)]


def test_no_rows_no_answers(generator):
    assert list(generator.answers([], Sampling(), 4)) == []


def test_sampling_is_repeatable(generator):
    def drawn(seed: int) -> list[str]:
        sampling = Sampling(max_new_tokens=6, temperature=1.0, seed=seed)
        return [answer.text for answer in generator.answers(rows(5), sampling, 2)]

    assert drawn(3) == drawn(3) != drawn(4)


@pytest.mark.parametrize("bos", [False, True])
def test_transformers_own_pipeline_takes_the_same_ids_and_gives_the_same_answer(
    model, small_tokenizer, bos, monkeypatch
):
    tokenizer = copy.deepcopy(small_tokenizer)
    if bos:
        adds = [("<|endoftext|>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            "<|endoftext|> $A", special_tokens=adds
        )
    generator = Generator(model, tokenizer, CHATML, FP32)
    row = Row.of({"instruction": "Add 2 and 3.", "input": "Fast."})
    seen = []
    monkeypatch.setattr(Decoding, "__call__", _noting(Decoding.__call__, seen))
    answer = generator.answer("Add 2 and 3.", "Fast.", max_new_tokens=NEW)
    asked = pipeline("text-generation", model=model, tokenizer=tokenizer)
    config = Sampling(max_new_tokens=NEW).config(tokenizer)
    [result] = asked(generator.prompt(row), generation_config=config, return_tensors=True)
    ids = result["generated_token_ids"]
    [prompt] = seen
    assert ids[: len(prompt)] == prompt and (prompt[0] == tokenizer.bos_token_id) == bos
    assert generator.read(row, ids[len(prompt) :]) == answer and answer.tokens == NEW


def test_an_answer_stops_at_the_format_s_own_end(tiny_llama, generator):
    row, sampling, tokenizer = (
        {"instruction": "5 5"},
        Sampling(max_new_tokens=NEW),
        generator.tokenizer,
    )
    ids = alone(generator.model, encode_prompt(WORDS, row, tokenizer), settings())
    # A token that the model writes, which from now on ends a turn.
    at = next(n for n in range(1, NEW) if tokenizer.convert_ids_to_tokens(ids[n]).isalpha())
    end, at = tokenizer.decode(ids[at]), ids.index(ids[at])
    config = ModelConfig(name=str(tiny_llama), quantization="none", precision="fp32")
    ending = Generator.load(config, structs.replace(WORDS, end=end))
    pieces = []
    answer = ending.stream(row, sampling, pieces.append)
    assert (answer.stop, answer.tokens) == ("eos", at + 1)
    assert answer.text == "".join(pieces) == tokenizer.decode(ids[:at])
    assert [*ending.answers([row], sampling, 1)] == [answer]
    free = generator.stream(row, sampling, pieces.append)
    assert (free.stop, free.tokens) == ("length", NEW)
    with pytest.raises(FasttuneError, match=r"ends a turn with '<\|im_end\|>'"):
        Generator.load(config, structs.replace(WORDS, end="<|im_end|>"))


MESSAGES = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Add 2 and 3."},
]


def test_a_conversation_is_answered_and_the_untuned_model_answers_the_same(
    model, folder, small_tokenizer, monkeypatch
):
    seen = []
    tuned = Generator(model, small_tokenizer, CHATML, FP32)
    base = Generator.load(ModelConfig(name=str(folder), precision="fp32"), CHATML)
    monkeypatch.setattr(Decoding, "__call__", _noting(Decoding.__call__, seen))
    answer = tuned.answer(MESSAGES, max_new_tokens=NEW)
    with tuned.untuned():
        untuned = tuned.answer(MESSAGES, max_new_tokens=NEW)
    assert untuned.text == base.answer(MESSAGES, max_new_tokens=NEW).text != answer.text
    assert tuned.answer(MESSAGES, max_new_tokens=NEW) == answer
    written = f"Hello.{small_tokenizer.eos_token}\n<|im_start|>user\nAdd 2 and 3.<|im_end|>\n"
    assert all(written in small_tokenizer.decode(ids) for ids in seen)
    with pytest.raises(FasttuneError, match="this is the untuned model"), base.untuned():
        pass


def _noting(call, seen):
    def noting(self, prompts, *more):
        seen.extend(prompts)
        return call(self, prompts, *more)

    return noting


def test_what_cannot_be_asked_of_a_conversation(generator):
    with pytest.raises(FasttuneError, match="'words' holds one turn, and this conversation has 2"):
        generator.answer(MESSAGES)
    assert generator.answer(MESSAGES[2:], max_new_tokens=1).tokens == 1
    with pytest.raises(FasttuneError, match="no conversation"):
        generator.answer(MESSAGES[1:])
    with pytest.raises(FasttuneError, match="nothing to answer"):
        generator.answer(MESSAGES[:2])
    with pytest.raises(FasttuneError, match="and the model reads 2048") as caught:
        generator.stream({"instruction": "word " * 2100}, Sampling(), lambda piece: None)
    assert "/reset" in caught.value.hint
