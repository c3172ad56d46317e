"""Chat templates: the prompts they give are the format's, in a conversation, too."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as examples_of
from hypothesis import strategies as st

from fasttune import FasttuneError, Row, Segment, Template, choose, given, learn
from fasttune.data.conversations import from_messages
from fasttune.encoding.encode import encode, encode_prompt
from fasttune.exports.chat_template import chat_template_for
from fasttune.formats.chat import ChatFormat
from fasttune.formats.examples import examples
from fasttune.formats.jinja import chat_template, render_jinja
from fasttune.plugins.discovery import load_plugins
from tests.formats.declarations import rows, templates

BUILT_IN = {name: template for name, (template, _) in load_plugins().templates.items()}
SYSTEM = (
    "You are AI assistant who is good at multilingual support. "
    "Switch the answer language depending on the user."
)
STEPS = Template(
    name="steps",
    conversations=True,
    system=choose("language", {"en": "Be brief.", "fr": "Sois bref."}, default="en"),
    parts=[
        given("system", "{system}", once=True),
        given("instruction", "\nQ: {instruction}\n"),
        given("context", "C: {input}\n", when="input"),
        given("reasoning", "R:\n"),
        learn("reasoning", "{reasoning}\n"),
        learn("response", "A: {output}"),
    ],
)
FORMATS = {**BUILT_IN, "steps": STEPS}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def rendered(template: Template, row: dict[str, str] | Row) -> str:
    row = Row.of(row)
    written = chat_template(template)
    return render_jinja(
        written, ChatFormat(template).messages(row), **ChatFormat(template).kwargs(row)
    )


@pytest.fixture(scope="module")
def tokenizers(phi2_tokenizer):
    """Phi-2's, one that adds BOS, and one that has the markers of ChatML and ends with one."""
    from tokenizers import processors

    bos, chatml = copy.deepcopy(phi2_tokenizer), copy.deepcopy(phi2_tokenizer)
    bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 50256)]
    )
    chatml.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    chatml.add_special_tokens({"eos_token": "<|im_end|>"})
    return [phi2_tokenizer, bos, chatml]


# Literally


def test_alpaca():
    chat = ChatFormat(BUILT_IN["alpaca"])
    assert rendered(chat.template, {"instruction": " Add\n2 and 3. ", "input": "x"}) == (
        "Below is an Instruction that describes a task. "
        "Write a Response that appropriately completes the request.\n\n"
        "### Instruction:\n Add\n2 and 3. \n\n### Response:\n"
    )
    assert rendered(chat.template, {"instruction": "Add.", "input": "2 and 3"}) == (
        "Below is an Instruction that describes a task, paired with a Context that provides "
        "further information. Write a Response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Context:\n2 and 3\n\n### Response:\n"
    )
    assert chat.stop == ["### Instruction:", "### Context:", "### Response:"]
    assert chat.system == ""
    assert any("system message is left out" in note for note in chat.notes)


def test_reasoning():
    chat = ChatFormat(BUILT_IN["reasoning"])
    row = Row.of({"instruction": "Add.", "input": "2 and 3", "system": "Be brief."})
    assert chat.messages(row) == [{"role": "system", "content": "Be brief."}, user("Add.")]
    assert chat.kwargs(row) == {"input": "2 and 3"}
    assert rendered(chat.template, row) == (
        "<|system|>Be brief.\n<|instruction|>Add.\n<|context|>2 and 3\n<|reasoning|>"
    )
    assert rendered(chat.template, {"instruction": "Add."}) == (
        f"<|system|>{SYSTEM}\n<|instruction|>Add.\n<|reasoning|>"
    )
    assert chat.system == SYSTEM
    assert "<|response|>" not in chat.stop  # the model writes it
    assert "<|instruction|>" in chat.stop


def test_multilingual_takes_the_language_as_a_variable():
    chat = ChatFormat(BUILT_IN["multilingual"])
    other = "You are a helpful assistant. Answer in the language of the instruction."
    default = f"<|system|>{other}\n"
    german = "<|system|>Du bist ein hilfsbereiter Assistent. Antworte auf Deutsch.\n"
    rest = "<|instruction|>Hi\n<|response|>"
    assert render_jinja(chat_template(chat.template), [user("Hi")]) == default + rest
    assert render_jinja(chat_template(chat.template), [user("Hi")], language="de") == german + rest
    assert render_jinja(chat_template(chat.template), [user("Hi")], language="xx") == default + rest
    assert any("fasttune detects the `language`" in note for note in chat.notes)
    assert chat.system == other


@pytest.mark.parametrize(
    ("value", "language"), [("ja-JP", "ja"), ("KO", "ko"), ("zh_TW", "zh"), ("xx", "other")]
)
def test_a_language_is_told_as_what_it_chooses(value, language):
    row = Row.of({"instruction": "Hello", "language": value})
    assert ChatFormat(BUILT_IN["multilingual"]).kwargs(row)["language"] == language
    detected = Row([{"instruction": "日本の首都は？"}], language="ja")
    assert ChatFormat(BUILT_IN["multilingual"]).kwargs(detected) == {"language": "ja"}


def test_a_language_that_is_shown_is_told_as_it_is():
    parts = [given("system", "[{language}] {system}: {instruction}"), learn("a", "{output}")]
    template = Template(
        name="t", system=choose("language", {"en": "Hi", "pt": "Oi"}, "en"), parts=parts
    )
    for language, system in (("pt-BR", "Oi"), ("PT", "Oi"), ("xx", "Hi"), ("en", "Hi")):
        row = {"instruction": "Q", "language": language}
        assert rendered(template, row) == template.prompt(row) == f"[{language}] {system}: Q"


def test_a_conversation():
    talk = Row.of(
        {"instruction": "c", "input": "I", "language": "fr"},
        [{"instruction": "a", "reasoning": "r", "output": "b"}],
    )
    assert ChatFormat(STEPS).messages(talk) == [user("a"), assistant("r\nA: b"), user("c")]
    text = render_jinja(
        chat_template(STEPS),
        ChatFormat(STEPS).messages(talk),
        eos_token="<eos>",
        **ChatFormat(STEPS).kwargs(talk),
    )
    assert text == "Sois bref.\nQ: a\nR:\nr\nA: b<eos>\nQ: c\nC: I\nR:\n"
    notes = ChatFormat(STEPS).notes
    assert notes[0].startswith("An earlier answer that begins with white space")
    assert any(
        "`input` for the last turn, and not available in Ollama: `input`, `language`" in note
        for note in notes
    )


def test_the_runs_system_text_becomes_the_default():
    chat = ChatFormat(BUILT_IN["multilingual"].with_system("Speak plainly.\n"))
    assert chat.system == "Speak plainly.\n"
    row = {"instruction": "日本の首都は？", "system": "Not this."}
    assert rendered(chat.template, row).startswith("<|system|>Speak plainly.\n\n")
    assert ChatFormat(BUILT_IN["alpaca"].with_system("unused")).system == ""


# Any format, any row


@settings(deadline=None, max_examples=80)
@examples_of(st.data())
def test_it_renders_the_prompt_of_any_format(data):
    template = data.draw(templates())
    row = data.draw(rows(template))
    assert rendered(template, row) == template.prompt(row)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    [
        "",
        "x",
        "  ",
        "\n\n lead",
        "trail \t\n",
        "{{ bos_token }}{% raw %}",
        "{# gone? #}{%- endif -%}",
        '\\n \\" \\u0041 \'"',
        "日本の首都は？",
        "ما هي العاصمة",
        "<|response|> <|endoftext|>",
        "        eight spaces\t\t\ttabs",
        "🥫👩‍👩‍👧",
    ]
)
LANGUAGES = st.sampled_from(["", "en", "ja", "de", "ko-KR", "pt-BR", "ZH", "xx", "English"])
MORE = st.fixed_dictionaries({}, optional={"input": TEXT, "system": TEXT, "language": LANGUAGES})
SPOKEN = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=9
).filter(lambda said: said.strip() and not said[0].isspace())
TURNS = st.lists(
    st.fixed_dictionaries({"instruction": SPOKEN, "reasoning": SPOKEN, "output": SPOKEN}),
    max_size=3,
)


@pytest.mark.parametrize("name", FORMATS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@examples_of(said=TURNS, asked=TEXT, spoken=SPOKEN, more=MORE)
def test_any_row_has_the_runs_ids(name, tokenizers, said, asked, spoken, more):
    template = FORMATS[name]
    talk = said if template.conversations else []
    row = Row.of({"instruction": spoken if talk else asked, **more}, talk)
    for tokenizer in tokenizers:
        special = "{{- bos_token -}}" if tokenizer("").input_ids else ""
        ids = tokenizer.apply_chat_template(
            ChatFormat(template).messages(row),
            chat_template=special + chat_template(template),
            add_generation_prompt=True,
            return_dict=False,
            **ChatFormat(template).kwargs(row),
        )
        assert ids == encode_prompt(template, row, tokenizer)


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_proves_its_template_and_writes_bos(name, tokenizers):
    template = FORMATS[name]
    plain, bos, _ = tokenizers
    chat = ChatFormat(template)
    assert chat_template_for(template, plain) == chat_template(template)
    assert chat_template_for(template, bos) == "{{- bos_token -}}\n" + chat_template(template)
    for row in examples(template)[:4]:
        for more in ({}, {"system": "{{ braces }}\n"}):
            asked = row.with_turn(more)
            ids = bos.apply_chat_template(
                chat.messages(asked), chat_template=chat_template_for(template, bos),
                add_generation_prompt=True, return_dict=False, **chat.kwargs(asked),
            )  # fmt: skip
            assert ids == encode_prompt(template, asked, bos)
            assert ids[0] == bos.bos_token_id


def test_a_tokenizer_that_adds_more_than_bos_is_refused(phi2_tokenizer):
    from tokenizers import processors

    tokenizer = copy.deepcopy(phi2_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|> <|endoftext|>", special_tokens=[("<|endoftext|>", 50256)]
    )
    with pytest.raises(FasttuneError, match="other tokens than BOS"):
        chat_template_for(BUILT_IN["alpaca"], tokenizer)


def test_a_whole_conversation_has_the_ids_of_training(tokenizers):
    spoken = [user("Hi."), assistant("Hello."), user("Add 2 and 3."), assistant("5")]
    chatml = BUILT_IN["chatml"]
    for tokenizer in (tokenizers[0], tokenizers[2]):
        ids = tokenizer.apply_chat_template(
            spoken, chat_template=chat_template(chatml), return_dict=False
        )
        assert ids == encode(chatml, from_messages(spoken), tokenizer).input_ids


# What a chat template is given


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "chatml"])
def test_a_format_of_one_turn_answers_the_last_question(name):
    template = BUILT_IN[name]
    conversation = [
        {"role": "system", "content": "Be brief."},
        user("First"), assistant("One"), user("Second"),
    ]  # fmt: skip
    row = {"instruction": "Second", "system": "Be brief."}
    written = chat_template(template)
    assert render_jinja(written, conversation) == template.prompt(row)
    answered = [user("Q"), assistant(" A\n")]
    prompt = template.prompt({"instruction": "Q"})
    assert render_jinja(written, answered, eos_token="<eos>") == prompt + " A\n<eos>"
    with pytest.raises(FasttuneError, match="needs a user message"):
        render_jinja(written, conversation[:1])


@pytest.mark.parametrize(
    ("spoken", "reason"),
    [
        ([], "needs a user message"),
        ([user("a"), user("b")], "must take turns"),
        ([assistant("a"), user("b")], "must take turns"),
        ([user("a"), assistant("b"), {"role": "tool", "content": "c"}], "must take turns"),
    ],
)
def test_what_takes_no_turns_is_refused(spoken, reason):
    with pytest.raises(FasttuneError, match=reason):
        render_jinja(chat_template(BUILT_IN["chatml"]), spoken)


def test_an_earlier_context_is_refused():
    row = Row.of({"instruction": "c"}, [{"instruction": "a", "input": "context", "output": "b"}])
    with pytest.raises(FasttuneError, match="an earlier turn has an input, which no chat template"):
        ChatFormat(BUILT_IN["chatml"]).kwargs(row)


def test_a_column_that_the_format_needs_is_needed_by_the_chat_template():
    parts = [given("topic", "{topic}: {instruction}"), learn("response", "{output}")]
    template = Template(name="t", columns=["topic"], parts=parts)
    assert rendered(template, {"instruction": "Q", "topic": "T"}) == "T: Q"
    with pytest.raises(FasttuneError, match="needs topic"):
        render_jinja(chat_template(template), [user("Q")])


@pytest.mark.parametrize("column", ["tools", "messages", "ns"])
def test_a_column_that_cannot_be_a_variable_is_refused(column):
    parts = [given("a", f"{{{column}}}{{instruction}}"), learn("response", "{output}")]
    with pytest.raises(FasttuneError, match=f"'{column}' cannot be the name of a variable"):
        chat_template(Template(name="t", columns=[column], parts=parts))


class Loud(Template):
    def segments(self, row):
        yield Segment("instruction", row["instruction"].upper(), train=False)
        yield Segment("response", row.get("output", ""), train=True)


def test_a_computed_format_has_no_chat_template_unless_it_brings_one():
    with pytest.raises(FasttuneError, match="'loud' computes its text, so it has no chat") as error:
        chat_template(Loud(name="loud"))
    assert error.value.where == __file__ and "chat_template=..." in error.value.hint
    own = Loud(name="loud", chat_template="{{ messages[-1]['content']|upper }}")
    assert rendered(own, {"instruction": "go"}) == own.prompt({"instruction": "go"}) == "GO"


def test_a_chat_template_that_is_not_the_format_is_refused(phi2_tokenizer):
    own = Loud(name="loud", chat_template="{{ messages[-1]['content'] }}")
    with pytest.raises(FasttuneError, match="other ids than a prompt"):
        chat_template_for(own, phi2_tokenizer)
    own = Loud(name="loud", chat_template="{{ messages[-1]['content']|upper }}")
    assert chat_template_for(own, phi2_tokenizer) == own.chat_template


def test_it_needs_no_torch():
    code = (
        "import sys; from fasttune.formats.jinja import chat_template; "
        "from fasttune.plugins.discovery import load_plugins; "
        "chat_template(load_plugins().template('reasoning')); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
