"""Chat templates of formats that hold a conversation: the ids of training, turn by turn."""

from __future__ import annotations

import copy

import pytest
from fasttune_plugins.chatml import ChatML
from hypothesis import HealthCheck, settings
from hypothesis import given as examples
from hypothesis import strategies as st

from fasttune import FasttuneError, Template, given, history, learn
from fasttune.data.conversations import from_messages
from fasttune.encoding.encode import encode, encode_prompt
from fasttune.exports.chat_template.jinja import compile_chat_template, render_jinja


class Steps(Template):
    """Reasoning in every answer, a language for all of them, and a context."""

    name = "steps"
    tags = ("Q:", "A:")
    targets = {"reasoning": "reasoning", "response": "output"}
    required = ("instruction", "reasoning", "output")

    def turn(self, row, first):
        if first:
            yield given("system", "Sois bref." if row.get("language") == "fr" else "Be brief.")
        yield given("instruction", f"\nQ: {row['instruction']}\n")
        if row.get("input"):
            yield given("context", f"C: {row['input']}\n")
        yield given("reasoning", "R:\n")
        yield learn("reasoning", f"{row.get('reasoning', '')}\n")
        yield learn("response", f"A: {row.get('output', '')}")

    def parse(self, text):
        reasoning, _, response = text.partition("\nA: ")
        return {"reasoning": reasoning, "response": response}


CHATS = {chat.name: compile_chat_template(chat, eos="<eos>") for chat in (ChatML(), Steps())}
formats = pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)

text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="<"), max_size=9)
spoken = text.filter(lambda said: said.strip() and not said[0].isspace())
exchanges = st.lists(
    st.fixed_dictionaries({"instruction": spoken, "reasoning": spoken, "output": spoken}),
    max_size=3,
)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture(scope="module")
def tokenizers(phi2_tokenizer):
    """Phi-2's, and one that has the markers of ChatML as tokens and ends with one of them."""
    chatml = copy.deepcopy(phi2_tokenizer)
    chatml.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    chatml.add_special_tokens({"eos_token": "<|im_end|>"})
    return phi2_tokenizer, chatml


@formats
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@examples(
    said=exchanges,
    asked=spoken,
    more=st.dictionaries(
        st.sampled_from(["system", "input", "language"]),
        st.sampled_from(["", "fr", "en", "  two "]),
    ),
)
def test_any_conversation_has_the_runs_ids(chat, tokenizers, said, asked, more):
    row = {"instruction": asked, **more, **history(said)}
    for tokenizer in tokenizers:
        ids = tokenizer.apply_chat_template(
            chat.messages(row),
            chat_template=chat.jinja_for(tokenizer) if not said else chat.jinja,
            add_generation_prompt=True,
            return_dict=False,
            **chat.kwargs(row),
        )
        assert ids == encode_prompt(chat.template, row, tokenizer)


def test_a_whole_conversation_has_the_ids_of_training(tokenizers):
    messages = [user("Hi."), assistant("Hello."), user("Add 2 and 3."), assistant("5")]
    for tokenizer in tokenizers:
        ids = tokenizer.apply_chat_template(
            messages, chat_template=CHATS["chatml"].jinja, return_dict=False
        )
        assert ids == encode(ChatML(), from_messages(messages), tokenizer).input_ids


def test_an_earlier_answer_is_what_the_model_wrote():
    row = {"instruction": "c", **history([{"instruction": "a", "reasoning": "r", "output": "b"}])}
    chat = CHATS["steps"]
    assert chat.messages(row) == [user("a"), assistant("r\nA: b"), user("c")]
    text = render_jinja(chat.jinja, chat.messages(row), eos_token="<eos>", input="I", language="fr")
    assert text == "Sois bref.\nQ: a\nR:\nr\nA: b<eos>\nQ: c\nC: I\nR:\n"
    assert chat.notes[0].startswith("An earlier answer that begins with white space")
    assert (
        "`input` for the last turn, and not available in Ollama: `input`, `language`"
        in (chat.notes[-1])
    )


def test_an_earlier_context_is_refused():
    earlier = history([{"instruction": "a", "input": "context", "output": "b"}])
    with pytest.raises(FasttuneError, match="as no chat template can"):
        CHATS["chatml"].kwargs({"instruction": "c", **earlier})


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "needs a user message"),
        ([user("a"), user("b")], "must take turns"),
        ([assistant("a"), user("b")], "must take turns"),
        ([user("a"), assistant("b"), {"role": "tool", "content": "c"}], "must take turns"),
    ],
)
def test_what_takes_no_turns_is_refused(messages, reason):
    with pytest.raises(FasttuneError, match=reason):
        render_jinja(CHATS["chatml"].jinja, messages)


def test_the_ollama_template_is_exact():
    assert CHATS["chatml"].ollama == (
        '{{- $first := true }}{{- range .Messages }}{{- if eq .Role "user" }}{{ if $first }}'
        "<|im_start|>system\n"
        "{{ if $.System }}{{ $.System }}{{ else }}You are a helpful assistant.{{ end }}<|im_end|>\n"
        "<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n"
        "{{ else }}\n<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n"
        '{{ end }}{{ $first = false }}{{ else if eq .Role "assistant" }}{{ .Content }}<eos>'
        "{{ end }}{{ end }}"
    )
