"""The built-in templates, byte for byte, and their contract over text in many scripts."""

from __future__ import annotations

import pytest
from fasttune_plugins import multilingual
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fasttune.data.check import check_record
from fasttune.encoding.encode import encode, encode_prompt
from fasttune.formats.template import tags_in
from fasttune.plugins.discovery import load_plugins

TEMPLATES = {
    name: load_plugins().template(name) for name in ("alpaca", "reasoning", "multilingual")
}
ADD = {"instruction": "Add 2 and 3.", "input": "", "reasoning": "2 + 3 = 5.", "output": "5"}


def test_alpaca_without_context():
    assert TEMPLATES["alpaca"].render(ADD) == (
        "Below is an Instruction that describes a task. "
        "Write a Response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd 2 and 3.\n\n### Response:\n5"
    )


def test_alpaca_with_context():
    assert TEMPLATES["alpaca"].render(ADD | {"input": "In base 4."}) == (
        "Below is an Instruction that describes a task, paired with a Context that provides "
        "further information. Write a Response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd 2 and 3.\n\n### Context:\nIn base 4.\n\n### Response:\n5"
    )


def test_reasoning():
    template = TEMPLATES["reasoning"]
    assert template.render(ADD | {"input": "In base 4."}) == (
        "<|system|>You are AI assistant who is good at multilingual support. "
        "Switch the answer language depending on the user.\n"
        "<|instruction|>Add 2 and 3.\n<|context|>In base 4.\n"
        "<|reasoning|>2 + 3 = 5.\n<|response|>5"
    )
    assert template.prompt(ADD | {"system": "Be brief."}) == (
        "<|system|>Be brief.\n<|instruction|>Add 2 and 3.\n<|reasoning|>"
    )
    assert [(s.name, s.text) for s in template.rendered(ADD) if s.train] == [
        ("reasoning", "2 + 3 = 5.\n"),
        ("response", "<|response|>5"),
    ]


@pytest.mark.parametrize("name", TEMPLATES)
def test_one_character_is_no_context(name):
    template = TEMPLATES[name]
    nothing, one, two = (template.render(ADD | {"input": text}) for text in ("", "x", "xy"))
    assert nothing == one
    assert "xy\n" in two and two != nothing
    assert template.render({k: v for k, v in ADD.items() if k != "input"}) == nothing


def test_reasoning_reads_an_answer_that_never_came_to_a_response():
    parse = TEMPLATES["reasoning"].parse
    assert parse("2 + 3 = 5.\n<|response|>5") == {"reasoning": "2 + 3 = 5.", "response": "5"}
    assert parse("2 + 3 is") == {"reasoning": "2 + 3 is", "response": ""}


QUESTIONS = {
    "en": "What is the capital of Japan?",
    "ja": "日本の首都はどこですか？",
    "zh": "中国的货币是什么？",
    "ko": "한국의 수도는 어디입니까?",
    "es": "¿Cuántos días tiene una semana?",
    "fr": "Combien de jours y a-t-il dans une semaine ?",
    "de": "Wie viele Tage hat eine Woche?",
}
SYSTEM_TEXTS = {
    "en": "You are a helpful assistant. Answer in English.",
    "ja": "あなたは親切なアシスタントです。日本語で答えてください。",
    "zh": "你是一个乐于助人的助手。请用中文回答。",
    "ko": "당신은 친절한 도우미입니다. 한국어로 답해 주세요.",
    "es": "Eres un asistente servicial. Responde en español.",
    "fr": "Tu es un assistant serviable. Réponds en français.",
    "de": "Du bist ein hilfsbereiter Assistent. Antworte auf Deutsch.",
}


@pytest.mark.parametrize("code", SYSTEM_TEXTS)
def test_multilingual_in_every_language(code):
    template, question = TEMPLATES["multilingual"], QUESTIONS[code]
    text = f"<|system|>{SYSTEM_TEXTS[code]}\n<|instruction|>{question}\n<|response|>"
    by_column = {"instruction": question, "language": code}
    assert template.prompt(by_column) == text
    read = check_record(1, {"instruction": question}, template, {}, ["instruction"]).row
    assert read.language == code and template.prompt(read) == text
    assert template.render(by_column | {"output": "5"}) == f"{text}5"


def test_multilingual_knows_no_other_languages():
    assert set(multilingual.SYSTEM) == {*SYSTEM_TEXTS, "other"}


def test_the_language_column_goes_before_detection():
    prompt = TEMPLATES["multilingual"].prompt({"instruction": QUESTIONS["en"], "language": "ja"})
    assert prompt.startswith(f"<|system|>{SYSTEM_TEXTS['ja']}\n")


@pytest.mark.parametrize(
    ("column", "code"),
    [
        ("zh_TW", "zh"),
        ("DE", "de"),
        ("ko-KR", "ko"),
        ("jpn", "ja"),
        ("cmn", "zh"),
        ("deu", "de"),
        ("ger", "de"),
        ("fra_Latn", "fr"),
        ("Japanese", "ja"),
        ("Simplified Chinese", "zh"),
        ("Deutsch", "de"),
        ("ESPAÑOL", "es"),
        ("English (US)", "en"),
        ("pt-BR", "other"),
        ("Russian", "other"),
        ("rus", "other"),
        ("Klingon", "other"),
        ("", "other"),
    ],
)
def test_languages_by_code_and_by_name(column, code):
    prompt = TEMPLATES["multilingual"].prompt({"instruction": "Hi", "language": column})
    assert prompt.startswith(f"<|system|>{multilingual.SYSTEM[code]}\n")


def test_a_system_text_of_the_row_goes_before_both():
    row = {"instruction": "Hi", "language": "ja", "system": "Be brief."}
    assert TEMPLATES["multilingual"].prompt(row).startswith("<|system|>Be brief.\n")


SCRIPTS = (
    "abc XYZ 019",
    "日本語ひらがな",
    "한국어",
    "русский",
    "العربية",
    "עברית",
    "हिन्दी",
    "ไทย",
    "ñßœ¿",
    "🥫👩‍🚀",
)
TEXTS = st.one_of(
    st.text(alphabet="".join(SCRIPTS) + " \n\t\r\"'<|>#:", max_size=40),
    st.text(max_size=40, alphabet=st.characters(exclude_categories=["Cs"])),
    st.sampled_from(
        ["<|response|", "|response|>", "###", " ", "\n\n", "\u2028", "\x00", "### Response"]
    ),
)
ROWS = st.fixed_dictionaries(
    {"instruction": TEXTS, "input": TEXTS, "reasoning": TEXTS, "output": TEXTS}
)


@pytest.mark.parametrize("name", TEMPLATES)
@given(row=ROWS)
@settings(deadline=None)
def test_parse_gives_back_what_was_learned(name, row):
    template = TEMPLATES[name]
    assume(not tags_in(template, row))
    completion = template.render(row).removeprefix(template.prompt(row))
    targets = {section: row[column] for section, column in template.targets.items()}
    assert template.parse(completion) == targets


@pytest.mark.parametrize("name", TEMPLATES)
@given(row=ROWS)
@settings(deadline=None)
def test_the_prompt_begins_the_text_and_knows_no_target(name, row):
    template = TEMPLATES[name]
    prompt = template.prompt({c: t for c, t in row.items() if c not in template.targets.values()})
    assert prompt == template.prompt(row)
    assert template.render(row).startswith(prompt)


@pytest.mark.parametrize("name", TEMPLATES)
@given(row=ROWS)
@settings(deadline=None, max_examples=50)
def test_training_ids_begin_with_the_prompt_ids(name, phi2_tokenizer, row):
    assume(row["output"] and row["reasoning"])
    template = TEMPLATES[name]
    encoded = encode(template, row, phi2_tokenizer)
    assert encoded.input_ids[: encoded.prompt_length] == encode_prompt(
        template, row, phi2_tokenizer
    )
