"""A format as a Jinja chat template, for programs that do not know fasttune.

`instruction` is the content of the last user message, `system` that of the system message; every
other column is a variable. A format of one turn leaves out earlier turns: if it refused them,
llama.cpp's server would not start, because it renders a sample conversation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from fasttune.errors import FasttuneError
from fasttune.formats.parts import Choice, Part, split_format
from fasttune.formats.template import Template

# Names that apply_chat_template or the chat template itself use for something else.
RESERVED = frozenset(
    (
        *("add_generation_prompt", "bos_token", "chat_template", "continue_final_message"),
        *("conversation", "documents", "eos_token", "max_length", "message", "messages", "ns"),
        *("padding", "raise_exception", "return_assistant_tokens_mask", "return_dict"),
        *("return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation"),
    )
)

_ONE_TURN = """\
{%- set ns = namespace(system='', instruction=none, answer=none) -%}
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
NEEDS
PARTS
{%- if ns.answer is not none -%}
  {{- ns.answer -}}
  {{- eos_token -}}
{%- endif -%}
"""

_TURNS = """\
{%- set ns = namespace(system='', instruction=none, first=true, due='user', last=none) -%}
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
NEEDS
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {%- set ns.instruction = message['content'] -%}
    {%- set ns.asked = loop.index0 == ns.last -%}
PARTS
    {%- set ns.first = false -%}
  {%- elif message['role'] == 'assistant' -%}
    {{- message['content'] -}}
    {{- eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""


def chat_template(template: Template) -> str:
    """The Jinja chat template of a format, for tokenizers that add no BOS.

    Raises:
        FasttuneError: the text of the format is computed and it brings no chat template, or a
            column has a name that Jinja uses.
    """
    if template.computed:
        if template.chat_template:
            return template.chat_template
        raise FasttuneError(
            f"template '{template.name}' computes its text, so it has no chat template",
            str(template.file),
            "give it one with chat_template=..., or prompt with fasttune itself",
        )
    for column in variable_columns(template):
        if column in RESERVED:
            raise FasttuneError(
                f"template '{template.name}' cannot be written as a chat template: '{column}' "
                "cannot be the name of a variable",
                "columns",
                "rename the column",
            )
    frame = _TURNS if template.conversations else _ONE_TURN
    given = [part for part in template.parts if not part.learned]
    lines = [line for part in given for line in _part(part, template)]
    return frame.replace("NEEDS", "\n".join(_needs(template))).replace("PARTS", "\n".join(lines))


def variable_columns(template: Template, row: Iterable[str] = ()) -> list[str]:
    """The columns that are variables of the chat template; for a computed format, which may look at
    any, those of a row."""
    apart = ("system", "instruction", *template.targets.values())
    columns = row if template.computed else template.reads
    return [column for column in columns if column not in apart]


def _needs(template: Template) -> list[str]:
    """The default of the system text, and errors for what a format cannot do without."""
    lines: list[str] = []
    if "system" in template.reads and template.system:
        write = "  {{%- set ns.system = {} -%}}".format
        system = _chosen(template.system, template, lambda text: [write(_literal(text))])
        lines += ["{%- if not ns.system -%}", *system, "{%- endif -%}"]
    for column in template.required:
        if column != "instruction" and column not in template.targets.values():
            lines += [
                f"{{%- if not {'ns.system' if column == 'system' else column} -%}}",
                f"  {{{{- raise_exception('this chat template needs {column}') -}}}}",
                "{%- endif -%}",
            ]
    return lines


def _chosen(
    choice: str | Choice, template: Template, write: Callable[[str], list[str]]
) -> list[str]:
    """The text, or an if for each text that is not the default's."""
    if isinstance(choice, str):
        return write(choice)
    lines, word, value = [], "if", f'({choice.by} or "")'
    if choice.by in shown_columns(template):  # so it is the column's own, as "pt-BR"
        general = f'{value}.split("-")[0].split("_")[0]|lower'
        value = f"({value} if {value} in {json.dumps([*choice.texts])} else {general})"
    for key, text in choice.texts.items():
        if key != choice.default:
            lines += [f"{{%- {word} {value} == {_literal(key)} -%}}", *write(text)]
            word = "elif"
    if word == "if":
        return write(choice.texts[choice.default])
    return [*lines, "{%- else -%}", *write(choice.texts[choice.default]), "{%- endif -%}"]


def _part(part: Part, template: Template) -> list[str]:
    in_turns = template.conversations
    conditions = ["ns.first"] if part.once and in_turns else []
    if part.when or part.unless:
        name = _value(part.when or part.unless, in_turns)
        least = f" and {name}|length >= {part.min_length}" if part.min_length > 1 else ""
        conditions.append(f"{name}{least}" if part.when else f"not ({name}{least})")
    lines = _chosen(part.text, template, lambda text: _text(text, in_turns))
    if not conditions:
        return lines
    return [f"{{%- if {' and '.join(conditions)} -%}}", *lines, "{%- endif -%}"]


def _text(text: str, in_turns: bool) -> list[str]:
    written = []
    for literal, column in split_format(text):
        written += [_literal(literal)] if literal else []
        written += [_value(column, in_turns)] if column else []
    return [f"{{{{- {piece} -}}}}" for piece in written]


def _value(column: str, in_turns: bool) -> str:
    if column in ("system", "instruction"):
        return f"ns.{column}"
    if column == "input" and in_turns:  # the variable belongs to the last turn
        return '(input if ns.asked and input else "")'
    return f'({column} or "")'


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def shown_columns(template: Template) -> set[str]:
    """The columns whose own text the format needs, beside the text that they choose."""
    columns = {c for part in template.parts for c in (*part.fields, part.when, part.unless)}
    choosing = [text.by for text in template.choices]
    return columns | {column for column in choosing if choosing.count(column) > 1}


def render_jinja(jinja: str, messages: Sequence[Mapping[str, str]], **variables: str) -> str:
    """Render as transformers does, without a tokenizer.

    Raises:
        FasttuneError: the chat template refuses the messages.
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
