"""A format as a Jinja chat template, for programs that do not know fasttune.

`instruction` is the content of the last user message, `system` that of the system message; every
other column is a variable of the chat template under its own name
(`apply_chat_template(..., input="...")`). A format of one turn leaves out earlier turns of a
conversation. Refusing them instead would keep llama.cpp's server from starting, which renders a
sample conversation when it loads a model. A format that holds conversations writes all of them,
and refuses roles that do not take turns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from fasttune.errors import FasttuneError
from fasttune.formats.parts import Choice, Part, pieces
from fasttune.formats.row import Row
from fasttune.formats.template import Template, at_the_answer, split_turns

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
    parts = "\n".join(line for part in given_parts(template) for line in _part(part, template))
    return frame.replace("NEEDS", "\n".join(_needs(template))).replace("PARTS", parts)


def given_parts(template: Template) -> list[Part]:
    return [part for part in template.parts if not part.learned]


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
        lines.append("{%- if not ns.system -%}")
        system = template.system
        if isinstance(system, Choice):
            write = "  {{%- set ns.system = {} -%}}".format
            lines += _chosen(system, template, lambda text: [write(_literal(text))])
        else:
            lines.append(f"  {{%- set ns.system = {_literal(system)} -%}}")
        lines.append("{%- endif -%}")
    for column in template.required:
        if column == "instruction" or column in template.targets.values():
            continue
        name = "ns.system" if column == "system" else column
        lines += [
            f"{{%- if not {name} -%}}",
            f"  {{{{- raise_exception('this chat template needs {column}') -}}}}",
            "{%- endif -%}",
        ]
    return lines


def _chosen(choice: Choice, template: Template, write: Callable[[str], list[str]]) -> list[str]:
    """An if for each text that is not the default's."""
    lines, word, value = [], "if", f'({choice.by} or "")'
    if choice.by in _shown(template):  # so it is the column's own, as "pt-BR"
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
    if isinstance(part.text, Choice):
        lines = _chosen(part.text, template, lambda text: _text(text, in_turns))
    else:
        lines = _text(part.text, in_turns)
    if not conditions:
        return lines
    return [f"{{%- if {' and '.join(conditions)} -%}}", *lines, "{%- endif -%}"]


def _text(text: str, in_turns: bool) -> list[str]:
    written = []
    for literal, column in pieces(text):
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


def messages(template: Template, row: Row) -> list[dict[str, str]]:
    """The messages of a row; an earlier answer as the model wrote it."""
    found = []
    reads_system = template.computed or "system" in template.reads
    if reads_system and row.system and not template.system_wins:
        found.append({"role": "system", "content": row.system})
    *earlier, last = row.turns
    written = split_turns(template.opening(row))
    for turn, segments in zip(earlier, written, strict=False):
        answer = "".join(segment.text for segment in at_the_answer(segments)[1])
        found.append({"role": "user", "content": turn["instruction"]})
        found.append({"role": "assistant", "content": answer})
    return [*found, {"role": "user", "content": last.get("instruction", "")}]


def variables(template: Template, row: Row) -> dict[str, str]:
    """The variables of a row, beside its messages.

    Raises:
        FasttuneError: an earlier turn has an `input`: there is one such variable, for the last.
    """
    columns = variable_columns(template, row)
    if "input" in columns and any(turn.get("input") for turn in row.turns[:-1]):
        raise FasttuneError(
            "an earlier turn has an input, which no chat template can take",
            f"instruction: {row.get('instruction', '')[:80]}",
            "prompt with fasttune itself",
        )
    shown = _shown(template)
    chosen = {text.by: text for text in template.choices if text.by not in shown}
    values = {c: chosen[c].key(row.get(c)) if c in chosen else row.get(c) for c in columns}
    return {column: value for column, value in values.items() if value}


def _shown(template: Template) -> set[str]:
    """The columns whose own text is needed, and not only the one that they choose."""
    columns = {column for part in template.parts for column in part.fields}
    columns |= {part.when or part.unless for part in template.parts}
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
