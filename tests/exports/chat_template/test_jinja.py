"""Chat templates: the prompts they give are the run's, token by token, or there is none."""

from __future__ import annotations

import copy
import random
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as examples
from hypothesis import strategies as st

from fasttune import FasttuneError, Template, given, learn
from fasttune.encoding.encode import encode_prompt
from fasttune.exports.chat_template.jinja import CompiledChat, compile_chat_template, render_jinja
from fasttune.exports.chat_template.skeleton import Condition
from fasttune.plugins.discovery import load_plugins
from fasttune.plugins.identity import PROBE_ROWS

BUILT_IN = ("alpaca", "reasoning", "multilingual")
SYSTEM = (
    "You are AI assistant who is good at multilingual support. "
    "Switch the answer language depending on the user."
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    [
        "",
        "x",
        "  ",
        "\n",
        "\n\n lead",
        "trail \t\n",
        "{{ bos_token }}{% raw %}",
        "{# gone? #}{%- endif -%}",
        '\\n \\" \\u0041 \'"',
        "日本の首都は？",
        "中国的货币",
        "한국의 수도",
        "¿Cuántos días?",
        "Wie heißt das",
        "où est le chat",
        "ما هي العاصمة",
        "<|response|> <|endoftext|>",
        "        eight spaces\t\t\ttabs",
        "1234567890",
        "🥫👩‍👩‍👧",
    ]
)
ROWS = st.fixed_dictionaries(
    {"instruction": TEXT},
    optional={
        "input": TEXT,
        "system": TEXT,
        "language": st.sampled_from(
            ["", "en", "ja", "de", "ko-KR", "pt-BR", "ZH", "xx", "English"]
        ),
    },
)


def built_in(name: str) -> Template:
    return load_plugins().template(name)


@pytest.fixture(scope="module", params=BUILT_IN)
def format_(request) -> CompiledChat:
    return compile_chat_template(built_in(request.param))


@pytest.fixture(scope="module")
def bos_tokenizer(phi2_tokenizer):
    """Phi-2's tokenizer, adding BOS to every text."""
    from tokenizers import processors

    tokenizer = copy.deepcopy(phi2_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 50256)]
    )
    assert tokenizer("").input_ids == [50256]
    return tokenizer


def rendered(chat: CompiledChat, row: dict[str, str]) -> str:
    return render_jinja(chat.jinja, chat.messages(row), **chat.kwargs(row))


def ids(chat: CompiledChat, row: dict[str, str], tokenizer) -> list[int]:
    return tokenizer.apply_chat_template(
        chat.messages(row),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        **chat.kwargs(row),
    )


def test_alpaca_is_rendered_exactly():
    chat = compile_chat_template(built_in("alpaca"))
    assert rendered(chat, {"instruction": " Add\n2 and 3. ", "input": "x"}) == (
        "Below is an Instruction that describes a task. "
        "Write a Response that appropriately completes the request.\n\n"
        "### Instruction:\n Add\n2 and 3. \n\n### Response:\n"
    )
    assert rendered(chat, {"instruction": "Add.", "input": "2 and 3"}) == (
        "Below is an Instruction that describes a task, paired with a Context that provides "
        "further information. Write a Response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Context:\n2 and 3\n\n### Response:\n"
    )
    assert chat.stop == ["### Instruction:", "### Context:", "### Response:"]
    assert chat.system == ""
    assert any("system message is left out" in note for note in chat.notes)


def test_reasoning_is_rendered_exactly():
    chat = compile_chat_template(built_in("reasoning"))
    row = {"instruction": "Add.", "input": "2 and 3", "system": "Be brief."}
    assert chat.messages(row) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add."},
    ]
    assert chat.kwargs(row) == {"input": "2 and 3"}
    assert rendered(chat, row) == (
        "<|system|>Be brief.\n<|instruction|>Add.\n<|context|>2 and 3\n<|reasoning|>"
    )
    assert rendered(chat, {"instruction": "Add."}) == (
        f"<|system|>{SYSTEM}\n<|instruction|>Add.\n<|reasoning|>"
    )
    assert chat.system == SYSTEM
    assert "<|response|>" not in chat.stop  # the model writes it
    assert "<|instruction|>" in chat.stop


def test_multilingual_takes_the_language_as_a_variable():
    chat = compile_chat_template(built_in("multilingual"))
    english = "<|system|>You are a helpful assistant. Answer in English.\n"
    german = "<|system|>Du bist ein hilfsbereiter Assistent. Antworte auf Deutsch.\n"
    rest = "<|instruction|>Hi\n<|response|>"
    messages = [{"role": "user", "content": "Hi"}]
    assert render_jinja(chat.jinja, messages) == english + rest
    assert render_jinja(chat.jinja, messages, language="de") == german + rest
    assert render_jinja(chat.jinja, messages, language="xx") == english + rest
    assert set(chat.skeleton.switches["language"]) >= {"ja", "zh", "ko", "es", "fr", "de"}
    assert any("finds `language` in the text" in note for note in chat.notes)


@pytest.mark.parametrize(
    ("row", "language"),
    [
        ({"instruction": "日本の首都は？"}, "ja"),
        ({"instruction": "日本の首都は？", "language": ""}, "ja"),
        ({"instruction": "Hello", "language": "ja-JP"}, "ja"),
        ({"instruction": "Wie heißt das Gerät?", "language": "KO"}, "ko"),
        ({"instruction": "Hello there"}, None),
    ],
)
def test_a_rows_language_is_what_the_template_makes_of_it(row, language):
    chat = compile_chat_template(built_in("multilingual"))
    assert chat.kwargs(row).get("language") == language
    assert rendered(chat, row) == built_in("multilingual").prompt(row)


def test_probe_rows_have_the_runs_ids(format_, phi2_tokenizer, bos_tokenizer):
    for tokenizer in (phi2_tokenizer, bos_tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = format_.jinja_for(tokenizer)
        for row in PROBE_ROWS:
            for more in ({}, {"system": "{{ braces }}\n"}):
                expected = encode_prompt(format_.template, {**row, **more}, tokenizer)
                assert ids(format_, {**row, **more}, tokenizer) == expected


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@examples(row=ROWS)
def test_any_row_has_the_runs_ids(format_, phi2_tokenizer, bos_tokenizer, row):
    assert rendered(format_, row) == format_.template.prompt(row)
    for tokenizer in (phi2_tokenizer, bos_tokenizer):
        tokenizer.chat_template = ("{{- bos_token -}}" if tokenizer is bos_tokenizer else "") + (
            format_.jinja
        )
        assert ids(format_, row, tokenizer) == encode_prompt(format_.template, row, tokenizer)
        tokenizer.chat_template = None


def test_without_bos_the_ids_of_a_tokenizer_that_adds_it_would_differ(format_, bos_tokenizer):
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.chat_template = format_.jinja
    row = {"instruction": "Hi"}
    assert [50256, *ids(format_, row, tokenizer)] == encode_prompt(format_.template, row, tokenizer)
    assert format_.jinja_for(tokenizer).startswith("{{- bos_token -}}")


def test_a_tokenizer_that_adds_more_than_bos_is_refused(format_, phi2_tokenizer):
    from tokenizers import processors

    tokenizer = copy.deepcopy(phi2_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|> <|endoftext|>", special_tokens=[("<|endoftext|>", 50256)]
    )
    with pytest.raises(FasttuneError, match="other tokens than BOS"):
        format_.jinja_for(tokenizer)


def test_a_conversation_is_answered_by_its_last_turn(format_):
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First"},
        {"role": "assistant", "content": "One"},
        {"role": "user", "content": "Second"},
    ]
    row = {"instruction": "Second", "system": "Be brief."}
    assert render_jinja(format_.jinja, conversation) == format_.template.prompt(row)
    with pytest.raises(FasttuneError, match="needs a user message"):
        render_jinja(format_.jinja, conversation[:1])


def test_an_answer_is_followed_by_eos(format_):
    conversation = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": " A\n"}]
    text = render_jinja(format_.jinja, conversation, eos_token="<eos>")
    assert text == format_.template.prompt({"instruction": "Q"}) + " A\n<eos>"


def test_the_ollama_template_is_exact():
    chat = compile_chat_template(built_in("reasoning"))
    assert chat.ollama == (
        '{{- $instruction := "" }}{{- $answer := "" }}\n'
        "{{- range .Messages }}\n"
        '{{- if eq .Role "user" }}{{ $instruction = .Content }}{{ $answer = "" }}{{ end }}\n'
        '{{- if eq .Role "assistant" }}{{ $answer = .Content }}{{ end }}\n'
        "{{- end }}"
        "<|system|>{{ if .System }}{{ .System }}{{ else }}" + SYSTEM + "{{ end }}\n"
        "<|instruction|>{{ $instruction }}\n"
        "<|reasoning|>{{ $answer }}"
    )
    alpaca = compile_chat_template(built_in("alpaca")).ollama
    assert alpaca.endswith(
        "\n\n### Instruction:\n{{ $instruction }}\n\n### Response:\n{{ $answer }}"
    )
    assert "Context" not in alpaca


def make(prompt, **attributes) -> Template:
    """A template whose prompt is what a function makes of a row."""

    class Made(Template):
        name = "made"

        def segments(self, row):
            yield given("prompt", prompt(row))
            yield learn("response", row.get("output", ""))

    for key, value in attributes.items():
        setattr(Made, key, value)
    return Made()


def test_ollama_text_is_safe_in_go_and_in_triple_quotes():
    odd = '{"a": {{1}}}\t"""q"""\u3000\r{'
    chat = compile_chat_template(make(lambda row: f'{odd}{row["instruction"]}"'))
    text = chat.ollama.partition("{{- end }}")[2]
    assert text == (
        '{{ "\\U0000007b" }}"a": {{ "\\U0000007b\\U0000007b" }}1}}}{{ "\\U00000009" }}'
        '{{ "\\U00000022\\U00000022\\U00000022" }}q{{ "\\U00000022\\U00000022\\U00000022" }}'
        '{{ "\\U00003000" }}{{ "\\U0000000d" }}{{ "\\U0000007b" }}{{ $instruction }}'
        '{{ "\\U00000022" }}{{ $answer }}'
    )


@examples(before=TEXT, after=TEXT, instruction=TEXT)
@settings(max_examples=100, deadline=None)
def test_any_literal_text_is_kept(before, after, instruction):
    template = make(lambda row: f"{before}{row['instruction']}{after}")
    chat = compile_chat_template(template)
    row = {"instruction": instruction}
    assert rendered(chat, row) == before + instruction + after


CONDITIONS = {
    "if given": (lambda v: v is not None, Condition()),
    "if not empty": (lambda v: bool(v), Condition(1)),
    "from 7 characters": (lambda v: len(v or "") >= 7, Condition(7)),
    "if not blank": (lambda v: bool((v or "").strip()), Condition(1, stripped=True)),
}


@pytest.mark.parametrize("name", CONDITIONS)
@examples(text=TEXT)
@settings(max_examples=40, deadline=None)
def test_conditions_are_found(name, text):
    holds, expected = CONDITIONS[name]
    template = make(
        lambda row: f"{row['instruction']}|{'C:' + row['note'] if holds(row.get('note')) else '-'}|"
    )
    chat = compile_chat_template(template)
    assert chat.skeleton.placed["note"] == expected
    for row in ({"instruction": "Q"}, {"instruction": "Q", "note": text}):
        assert rendered(chat, row) == template.prompt(row)
        note = {"note": row["note"]} if "note" in row else {}  # as a person would pass it
        assert render_jinja(chat.jinja, chat.messages(row), **note) == template.prompt(row)


def test_columns_that_act_together_sections_that_move_and_texts_twice():
    def prompt(row):
        first, last = f"Q {row['instruction']}\n", f"N {row.get('note') or 'none'}\n"
        parts = [last, first] if row.get("note") else [first, last]
        if row.get("tone") and not row.get("note"):
            parts.append(f"{row['tone']}/{row['tone']}")
        return "".join(parts)

    template = make(prompt)
    chat = compile_chat_template(template)
    for note in ("", "n"):
        for tone in ("", "t", "{{ x }}"):
            row = {"instruction": "i", "note": note, "tone": tone}
            assert rendered(chat, row) == template.prompt(row)


def test_a_column_the_template_needs_is_needed_by_the_chat_template():
    template = make(lambda row: f"{row['topic']}: {row['instruction']}")
    chat = compile_chat_template(template)
    assert rendered(chat, {"instruction": "Q", "topic": "T"}) == "T: Q"
    with pytest.raises(FasttuneError, match="needs topic"):
        render_jinja(chat.jinja, [{"role": "user", "content": "Q"}])
    optional = make(lambda row: (row["input"] and f"C {row['input']}\n") + row["instruction"])
    chat = compile_chat_template(optional)
    assert rendered(chat, {"instruction": "Q", "input": "T"}) == "C T\nQ"
    assert render_jinja(chat.jinja, [{"role": "user", "content": "Q"}]) == "Q"


def test_the_runs_system_text_becomes_the_default():
    template = built_in("multilingual")
    chat = compile_chat_template(template, system="Speak plainly.\n")
    assert chat.system == "Speak plainly.\n"
    assert rendered(chat, {"instruction": "日本の首都は？"}).startswith(
        "<|system|>Speak plainly.\n\n"
    )
    assert not chat.skeleton.text_decides
    assert compile_chat_template(built_in("alpaca"), system="unused").system == ""


def test_a_language_that_the_text_does_not_decide_is_no_note():
    names = {"de": "Deutsch", "ja": "日本語"}

    def prompt(row):
        code = row.get("language", "")
        return f"[{names.get(code, 'English') if code else 'any'}] {row['instruction']}"

    chat = compile_chat_template(make(prompt))
    for code, shown in (("de", "Deutsch"), ("ja", "日本語"), ("fr", "English"), ("", "any")):
        row = {"instruction": "Q", "language": code}
        assert rendered(chat, row) == f"[{shown}] Q"
    assert rendered(chat, {"instruction": "Q"}) == "[any] Q"
    assert not chat.skeleton.text_decides


REFUSED = {
    "strips white space off 'instruction'": lambda row: f"Q {row['instruction'].strip()}\n",
    "changes the case of 'instruction'": lambda row: f"Q {row['instruction'].upper()}\n",
    "changes the white space in 'instruction'": lambda r: (
        f"Q {' '.join(r['instruction'].split())}\n"
    ),
    "shortens 'instruction'": lambda row: f"Q {row['instruction'][:1000]}\n",
    "shortens 'input'": lambda row: f"Q {row['instruction']}\n{row.get('input', '')[:200]}\n",
    "the text around 'instruction' changes": lambda row: (
        f"{row['instruction']} ({len(row['instruction'].split())} words)"
    ),
    "normalises the Unicode of 'instruction'": lambda row: __import__("unicodedata").normalize(
        "NFKC", row["instruction"]
    ),
    "escapes characters in 'instruction'": lambda row: __import__("html").escape(
        row["instruction"], quote=False
    ),
    "depends on the column 'output'": lambda row: (
        f"{row['instruction']} {len(row.get('output', ''))}"
    ),
    "differently each time": lambda row: f"{row['instruction']} {random.random()}",
    "something to 'instruction'": lambda row: f"Q {row['instruction'][::-1]}\n",
    "reads the column 'style'": lambda row: (
        row["instruction"] + ("!" if row.get("style") == "loud" else "")
    ),
    "whether 'input' is placed depends on more": lambda row: (
        row["instruction"] + ("" if "?" in row.get("input", "") else row.get("input", ""))
    ),
    "fails on a probe with ValueError": lambda row: f"{int('x')}",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_template_that_does_more_is_refused_with_the_reason(reason):
    with pytest.raises(FasttuneError) as caught:
        compile_chat_template(make(REFUSED[reason]))
    assert reason in caught.value.message
    assert caught.value.message.startswith("template 'made' cannot be written as a chat template")


def test_a_prompt_overridden_beside_its_segments_is_refused():
    template = make(lambda row: row["instruction"])
    type(template).prompt = lambda self, row: f"{row['instruction']}\n"
    with pytest.raises(FasttuneError, match="overrides prompt"):
        compile_chat_template(template)


def test_a_column_that_cannot_be_a_variable_is_refused():
    for column in ("two words", "tools"):
        with pytest.raises(FasttuneError, match="cannot be the name of a variable"):
            compile_chat_template(
                make(lambda row, c=column: f"{row['instruction']}{row.get(c, '')}")
            )


def test_a_row_that_probing_did_not_foresee_is_refused():
    chat = compile_chat_template(
        make(lambda row: f"{row['instruction']}{'!' * ('sesame' in row['instruction'])}")
    )
    assert chat.kwargs({"instruction": "open"}) == {}
    with pytest.raises(FasttuneError, match="as no chat template can"):
        chat.kwargs({"instruction": "open sesame"})


def test_compiling_needs_no_torch():
    code = (
        "import sys; from fasttune.exports.chat_template.jinja import compile_chat_template; "
        "from fasttune.plugins.discovery import load_plugins; "
        "compile_chat_template(load_plugins().template('reasoning')); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
