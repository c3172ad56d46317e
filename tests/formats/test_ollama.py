"""Go templates for a Modelfile, literally."""

from __future__ import annotations

import pytest

from fasttune import FasttuneError, Segment, Template, choose, given, learn
from fasttune.formats.chat import ChatFormat
from fasttune.formats.ollama import ollama_template
from fasttune.plugins.discovery import load_plugins

HEAD = (
    '{{- $instruction := "" }}{{- $answer := "" }}\n'
    "{{- range .Messages }}\n"
    '{{- if eq .Role "user" }}{{ $instruction = .Content }}{{ $answer = "" }}{{ end }}\n'
    '{{- if eq .Role "assistant" }}{{ $answer = .Content }}{{ end }}\n'
    "{{- end }}"
)


def ollama(*parts, **settings) -> str:
    """The text for one turn, without the head."""
    learned = learn("response", "{output}")
    written = ollama_template(Template(name="t", parts=[*parts, learned], **settings), "<eos>")
    assert written.startswith(HEAD) and written.endswith("{{ $answer }}")
    return written.removeprefix(HEAD).removesuffix("{{ $answer }}")


def built_in(name: str) -> str:
    return ChatFormat(load_plugins().template(name), "<eos>").ollama


def test_one_turn():
    assert built_in("reasoning") == (
        HEAD + "<|system|>{{ if .System }}{{ .System }}{{ else }}You are AI assistant who is good "
        "at multilingual support. Switch the answer language depending on the user.{{ end }}\n"
        "<|instruction|>{{ $instruction }}\n"
        "<|reasoning|>{{ $answer }}"
    )
    alpaca = built_in("alpaca")
    assert alpaca.endswith(
        "\n\n### Instruction:\n{{ $instruction }}\n\n### Response:\n{{ $answer }}"
    )
    assert "Context" not in alpaca


def test_a_conversation():
    system = "{{ if $.System }}{{ $.System }}{{ else }}You are a helpful assistant.{{ end }}"
    assert built_in("chatml") == (
        '{{- $first := true }}{{- range .Messages }}{{- if eq .Role "user" }}'
        f"{{{{ if $first }}}}<|im_start|>system\n{system}<|im_end|>{{{{ end }}}}"
        "\n<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n"
        "{{ $first = false }}"
        '{{ else if eq .Role "assistant" }}{{ .Content }}<eos>{{ end }}{{ end }}'
    )


def test_text_is_safe_in_go_and_in_triple_quotes():
    odd = '{{"a": {{{{1}}}}}}\t"""q"""\u3000\r{{{instruction}"'
    assert ollama(given("a", odd)) == (
        '{{ "\\U0000007b" }}"a": {{ "\\U0000007b\\U0000007b" }}1}}}{{ "\\U00000009" }}'
        '{{ "\\U00000022\\U00000022\\U00000022" }}q{{ "\\U00000022\\U00000022\\U00000022" }}'
        '{{ "\\U00003000" }}{{ "\\U0000000d" }}{{ "\\U0000007b" }}{{ $instruction }}'
        '{{ "\\U00000022" }}'
    )


ASK = given("ask", "Q{instruction}")


@pytest.mark.parametrize(
    ("part", "settings", "written"),
    [
        (given("a", "C{input}", when="input"), {}, ""),
        (given("a", "none", unless="input"), {}, "none"),
        (given("a", "I", when="instruction"), {}, "I"),
        (given("a", "I", unless="instruction"), {}, ""),
        (given("a", "S{system}", when="system"), {}, "{{ if .System }}S{{ .System }}{{ end }}"),
        (given("a", "none", unless="system"), {}, "{{ if .System }}{{ else }}none{{ end }}"),
        (given("a", "there", when="system"), {"system": "x"}, "there"),
        (given("a", "none", unless="system"), {"system": "x"}, ""),
        (given("a", choose("language", {"en": "Hi", "fr": "Oui"}, "fr")), {}, "Oui"),
        (given("a", "[{topic}]"), {"columns": ["topic"]}, "[]"),
        (given("a", "Once", once=True), {}, "Once"),
    ],
)
def test_conditions(part, settings, written):
    assert ollama(part, ASK, **settings) == written + "Q{{ $instruction }}"


def test_a_default_that_is_chosen():
    template = load_plugins().template("multilingual")
    other = "You are a helpful assistant. Answer in the language of the instruction."
    assert f"{{{{ else }}}}{other}{{{{ end }}}}\n<|instruction|>" in ollama_template(template, "")
    own = template.with_system("Speak.")
    assert "{{ else }}Speak.{{ end }}\n<|instruction|>" in ollama_template(own, "")


def test_a_computed_format_has_none():
    class Loud(Template):
        def segments(self, row):
            yield Segment("response", row.get("output", ""), train=True)

    with pytest.raises(FasttuneError, match="'loud' computes its text, so it cannot be") as error:
        ollama_template(Loud(name="loud"), "<eos>")
    assert error.value.where == __file__
