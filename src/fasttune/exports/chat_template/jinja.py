"""A template plugin as data: a Jinja chat template, and a TEMPLATE for an Ollama Modelfile.

`instruction` is the content of the last user message, `system` that of the system message; every
other column is a variable of the chat template under its own name
(`apply_chat_template(..., input="...")`). A format of one turn leaves out earlier turns of a
conversation. Refusing them instead would keep llama.cpp's server from starting, which renders a
sample conversation when it loads a model. A format that is written turn by turn has all of them,
and refuses roles that do not take turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fasttune.encoding.encode import encode_prompt
from fasttune.errors import FasttuneError
from fasttune.exports.chat_template.go import ollama_template
from fasttune.exports.chat_template.probing import default_system, take_apart
from fasttune.exports.chat_template.skeleton import Choice, Condition, Field, Node, Skeleton
from fasttune.plugins.identity import PROBE_ROWS, probe_rows
from fasttune.plugins.template import (
    Row,
    Segment,
    Template,
    at_the_answer,
    history,
    opening,
    split_turns,
    turns,
)

# Names that apply_chat_template or the compiled template use for something else.
RESERVED = frozenset(
    (
        *("add_generation_prompt", "bos_token", "chat_template", "continue_final_message"),
        *("conversation", "documents", "eos_token", "max_length", "message", "messages", "ns"),
        *("padding", "raise_exception", "return_assistant_tokens_mask", "return_dict"),
        *("return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation"),
    )
)


@dataclass(frozen=True)
class CompiledChat:
    """A `ChatFormat`: a prompt format for programs that do not know the plugin.

    Attributes:
        jinja: for tokenizers that add no BOS; `jinja_for` is for any.
        ollama: the Go template of a Modelfile.
        system: the system text where a request has none, or "".
        stop: tags that open a section the model never writes: generation has gone wrong where it
            writes one. EOS is not among them.
        notes: what other programs cannot do that fasttune does, one sentence each.
    """

    jinja: str
    ollama: str
    system: str
    stop: list[str]
    notes: list[str]
    template: Template = field(repr=False)
    skeleton: Skeleton = field(repr=False)
    later: Skeleton | None = field(repr=False)
    run_system: str | None = field(repr=False)

    def messages(self, row: Row) -> list[dict[str, str]]:
        """The messages of a row; an earlier answer as the model wrote it."""
        system = row.get("system")
        messages = []
        if "system" in self.skeleton.placed and self.skeleton.placed["system"].holds(system):
            messages.append({"role": "system", "content": row["system"]})
        *earlier, last = turns(row)
        written = split_turns(opening(self.template, self._full(row)))
        for turn, segments in zip(earlier, written, strict=False):
            answer = "".join(segment.text for segment in at_the_answer(segments)[1])
            messages.append({"role": "user", "content": turn["instruction"]})
            messages.append({"role": "assistant", "content": answer})
        return [*messages, {"role": "user", "content": last["instruction"]}]

    def kwargs(self, row: Row) -> dict[str, str]:
        """The variables of a row: placed columns, and the values that switch its fixed texts.

        Raises:
            FasttuneError: the template renders the row in a way that probing did not find.
        """
        matching = self._matching(row)
        if matching is None:
            raise FasttuneError(
                f"template '{self.template.name}' renders this row as no chat template can",
                f"instruction: {row.get('instruction', '')[:80]}",
                "prompt with fasttune itself",
            )
        placed = {**(self.later.placed if self.later else {}), **self.skeleton.placed}
        return {
            **{
                c: row[c]
                for c, when in placed.items()
                if c not in _IN_MESSAGES and when.holds(row.get(c))
            },
            **{c: matching[c] for c in self.skeleton.switches if matching.get(c)},
        }

    def _matching(self, row: Row) -> Row | None:
        """The row with its switches set such that the skeletons give its prompt, if they do."""
        first, *others = turns(row)
        begun, *written = [
            "".join(segment.text for segment in at_the_answer(segments)[0])
            for segments in split_turns(opening(self.template, self._full(row)))
        ]
        if any(turn.get("input") for turn in (first, *others)[:-1]):
            return None  # a chat template has one such variable, for the last turn
        matching = self.skeleton.matching(first, begun)
        if matching is None:
            return None
        set_ = {c: matching[c] for c in self.skeleton.switches if matching.get(c)}
        for turn, text in zip(others, written, strict=True):
            if self.later is None or self.later.matching({**turn, **set_}, text) is None:
                return None
        return {**row, **set_}

    def jinja_for(self, tokenizer: Any) -> str:
        """The chat template with BOS where the tokenizer adds it: apply_chat_template does not.

        Raises:
            FasttuneError: the prompts that the chat template gives have other ids than the run's.
        """
        jinja = self.jinja
        if special := list(tokenizer("").input_ids):
            if special != [tokenizer.bos_token_id]:
                text = tokenizer.convert_ids_to_tokens(special)
                raise FasttuneError(
                    "the tokenizer adds other tokens than BOS, which no chat template can do",
                    f"{getattr(tokenizer, 'name_or_path', '')}: {' '.join(text)}",
                    "export without a chat template",
                )
            jinja = "{{- bos_token -}}\n" + jinja
        for row in map(_without_earlier_inputs, probe_rows(self.template)):
            ids = tokenizer.apply_chat_template(
                self.messages(row),
                chat_template=jinja,
                add_generation_prompt=True,
                return_dict=False,
                **self.kwargs(row),
            )
            if list(ids) != encode_prompt(self.template, self._full(row), tokenizer):
                raise FasttuneError(
                    "the tokenizer gives a chat template's text other ids than a prompt",
                    f"{getattr(tokenizer, 'name_or_path', '')}: {row['instruction']}",
                    "export without a chat template",
                )
        return jinja

    def render(self, row: Row, jinja: str, bos: str = "", eos: str = "") -> str:
        """The prompt of a row by the chat template of an export, `jinja`.

        Raises:
            FasttuneError: the chat template refuses the row.
        """
        variables = {**self.kwargs(row), "bos_token": bos, "eos_token": eos}
        return render_jinja(jinja, self.messages(row), **variables)

    def _full(self, row: Row) -> Row:
        return default_system(row, self.run_system)


def _without_earlier_inputs(row: Row) -> Row:
    *earlier, _ = turns(row)
    return {**row, **history([{**turn, "input": ""} for turn in earlier])}


def compile_chat_template(
    template: Template, system: str | None = None, eos: str = ""
) -> CompiledChat:
    """Compile a template by probing it.

    Args:
        system: stands in for the system text of rows that have none, as `system` of a run does.
        eos: text of the EOS token, for the Go template, which has no variable for it.

    Raises:
        FasttuneError: the template does more than place its columns; it says what.
    """
    if not template.holds_turns:
        skeleton, later = take_apart(template, system), None
    else:
        skeleton, later = (take_apart(_turn(template, first), system) for first in (True, False))
    for column in _variables(skeleton, later):
        if not column.isidentifier() or column in RESERVED:
            raise FasttuneError(
                f"template '{template.name}' cannot be written as a chat template: "
                f"'{column}' cannot be the name of a variable",
                "",
                "rename the column",
            )
    return CompiledChat(
        jinja=_jinja(skeleton, later),
        ollama=ollama_template(skeleton, later, eos),
        system=_default_system(skeleton.nodes),
        stop=_stop(template, skeleton),
        notes=_notes(skeleton, later),
        template=template,
        skeleton=skeleton,
        later=later,
        run_system=system,
    )


def _turn(template: Template, first: bool) -> Template:
    """How a format writes the first turn, or a later one, as a format of its own."""

    class Turn(Template):
        name = template.name
        description, tags, system = template.description, template.tags, template.system
        targets, required = template.targets, template.required

        def segments(self, row: Row) -> Iterable[Segment]:
            return template.turn(row, first)

    return Turn()


def _variables(skeleton: Skeleton, later: Skeleton | None) -> set[str]:
    """The columns that are variables of the chat template."""
    both = [each for each in (skeleton, later) if each]
    return {c for each in both for c in (*each.placed, *each.switches)} - _IN_MESSAGES


def render_jinja(jinja: str, messages: Sequence[Mapping[str, str]], **variables: str) -> str:
    """Render as transformers does, without a tokenizer.

    Raises:
        FasttuneError: the template refuses the messages.
    """
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(jinja).render(
            messages=messages, add_generation_prompt=True, **variables
        )
    except TemplateError as error:
        raise FasttuneError(f"the chat template refuses the messages: {error}") from error


_IN_MESSAGES = frozenset({"instruction", "system"})

_JINJA_HEAD = """\
{%- set ns = namespace(system=none, instruction=none, answer=none) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {%- set ns.system = message['content'] -%}
  {%- elif message['role'] == 'user' -%}
    {%- set ns.instruction = message['content'] -%}
    {%- set ns.answer = none -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- set ns.answer = message['content'] -%}
  {%- endif -%}
{%- endfor -%}
{%- if ns.instruction is none -%}
  {{- raise_exception('this chat template needs a user message') -}}
{%- endif -%}
"""
_JINJA_TAIL = """\
{%- if ns.answer is not none -%}
  {{- ns.answer -}}
  {{- eos_token -}}
{%- endif -%}
"""


_JINJA_TURNS_HEAD = """\
{%- set ns = namespace(system=none, instruction=none, first=true, due='user', last=none) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {%- set ns.system = message['content'] -%}
  {%- elif message['role'] != ns.due -%}
    {{- raise_exception('user and assistant must take turns, the user first') -}}
  {%- elif message['role'] == 'user' -%}
    {%- set ns.due = 'assistant' -%}
    {%- set ns.instruction = message['content'] -%}
    {%- set ns.last = loop.index0 -%}
  {%- else -%}
    {%- set ns.due = 'user' -%}
  {%- endif -%}
{%- endfor -%}
{%- if ns.instruction is none -%}
  {{- raise_exception('this chat template needs a user message') -}}
{%- endif -%}
"""


def _jinja(skeleton: Skeleton, later: Skeleton | None) -> str:
    required = skeleton.required | (later.required if later else set())
    needs = [
        f"{{%- if {_variable(name)} is not defined or {_variable(name)} is none -%}}\n"
        f"  {{{{- raise_exception('this chat template needs {name}') -}}}}\n"
        "{%- endif -%}\n"
        for name in sorted(required - {"instruction"})
    ]
    if later is None:
        return "".join([_JINJA_HEAD, *needs, *_jinja_nodes(skeleton.nodes, ""), _JINJA_TAIL])
    lines = [
        "{%- for message in messages -%}\n",
        "  {%- if message['role'] == 'user' -%}\n",
        "    {%- set ns.instruction = message['content'] -%}\n",
        "    {%- set ns.asked = loop.index0 == ns.last -%}\n",
        "    {%- if ns.first -%}\n",
        *_jinja_nodes(skeleton.nodes, "      ", "ns.asked"),
        "    {%- else -%}\n",
        *_jinja_nodes(later.nodes, "      ", "ns.asked"),
        "    {%- endif -%}\n",
        "    {%- set ns.first = false -%}\n",
        "  {%- elif message['role'] == 'assistant' -%}\n",
        "    {{- message['content'] -}}\n",
        "    {{- eos_token -}}\n",
        "  {%- endif -%}\n",
        "{%- endfor -%}\n",
    ]
    return "".join([_JINJA_TURNS_HEAD, *needs, *lines])


def _jinja_nodes(nodes: Sequence[Node], indent: str, asked: str = "") -> list[str]:
    """
    Args:
        asked: true in the turn that the variable `input` belongs to; "" where there is one turn.
    """
    lines = []
    for node in nodes:
        if isinstance(node, str):
            lines.append(f"{indent}{{{{- {json.dumps(node, ensure_ascii=False)} -}}}}\n")
        elif isinstance(node, Field):
            lines.append(f"{indent}{{{{- {_variable(node.column)} -}}}}\n")
        else:
            for index, (test, inner) in enumerate(node.cases):
                word = "elif" if index else "if"
                condition = _jinja_condition(test, _variable(node.column))
                if asked and node.column == "input":
                    condition = f"{asked} and ({condition})"
                lines.append(f"{indent}{{%- {word} {condition} -%}}\n")
                lines += _jinja_nodes(inner, indent + "  ", asked)
            if node.otherwise:
                lines.append(f"{indent}{{%- else -%}}\n")
                lines += _jinja_nodes(node.otherwise, indent + "  ", asked)
            lines.append(f"{indent}{{%- endif -%}}\n")
    return lines


def _variable(column: str) -> str:
    return f"ns.{column}" if column in _IN_MESSAGES else column


def _jinja_condition(test: Condition, name: str) -> str:
    if len(test.values) == 1:
        return f"{name} == {json.dumps(test.values[0])}"
    if test.values:
        return f"{name} in {json.dumps(list(test.values))}"
    if test.minimum == 0:
        return f"{name} is defined and {name} is not none"
    trimmed = f"{name}|trim" if test.stripped else name
    if test.minimum == 1:
        return f"{name} and {trimmed}" if test.stripped else name
    return f"{name} and {trimmed}|length >= {test.minimum}"


def _default_system(nodes: Sequence[Node]) -> str:
    """The fixed text in the place of a system text, or ""."""
    for node in nodes:
        if isinstance(node, Choice):
            if node.column == "system" and node.cases[0][1] == (Field("system"),):
                return _fixed(node.otherwise)
            for inner in (*(nodes for _, nodes in node.cases), node.otherwise):
                if text := _default_system(inner):
                    return text
    return ""


def _fixed(nodes: Sequence[Node]) -> str:
    """The text of nodes where no column is given; "" if it holds a column."""
    texts = [_fixed(n.otherwise) if isinstance(n, Choice) else n for n in nodes]
    return "".join(t for t in texts if isinstance(t, str)) if Field not in map(type, texts) else ""


def _stop(template: Template, skeleton: Skeleton) -> list[str]:
    rows = [{**dict.fromkeys(skeleton.required, ""), **row} for row in PROBE_ROWS]
    learned = "".join(s.text for row in rows for s in template.segments(row) if s.train)
    return [tag for tag in template.tags if tag not in learned]


def _notes(skeleton: Skeleton, later: Skeleton | None) -> list[str]:
    notes = [
        "Each answer is to the last user message alone: earlier turns are left out of the prompt."
        if later is None
        else "An earlier answer that begins with white space may get other token ids than in "
        "training: a chat template cannot put a border of tokens before it."
    ]
    if "system" not in skeleton.placed:
        notes.append("The format has no place for a system text: a system message is left out.")
    variables = sorted(_variables(skeleton, later))
    if variables:
        names = ", ".join(f"`{name}`" for name in variables)
        given = "Given as variables of the chat template"
        if later and "input" in variables:
            given += ", `input` for the last turn"
        notes.append(f"{given}, and not available in Ollama: {names}.")
    if skeleton.text_decides:
        names = ", ".join(f"`{name}`" for name in skeleton.switches)
        notes.append(
            f"fasttune finds {names} in the text of a row that does not give it; a chat template "
            "cannot, and writes the most common form."
        )
    return notes
