"""A format as a Go template: the TEMPLATE of an Ollama Modelfile.

Columns other than instruction and system count as absent: Ollama has no variables for them.
"""

from __future__ import annotations

import re

from fasttune.errors import FasttuneError
from fasttune.formats.jinja import given_parts
from fasttune.formats.parts import Part, default_text, pieces
from fasttune.formats.template import Template

# Without .Messages, Ollama would render every earlier turn by itself and put them in a row.
_HEAD = """\
{{- $instruction := "" }}{{- $answer := "" }}
{{- range .Messages }}
{{- if eq .Role "user" }}{{ $instruction = .Content }}{{ $answer = "" }}{{ end }}
{{- if eq .Role "assistant" }}{{ $answer = .Content }}{{ end }}
{{- end }}"""


def ollama_template(template: Template, end: str) -> str:
    """The Go template of a Modelfile.

    Args:
        end: the text that ends an earlier answer.

    Raises:
        FasttuneError: the text of the format is computed.
    """
    if template.computed:
        raise FasttuneError(
            f"template '{template.name}' computes its text, so it cannot be an Ollama template",
            str(template.file),
            "export it as gguf, and prompt it yourself",
        )
    parts = given_parts(template)
    if not template.conversations:
        fields = {"instruction": "$instruction", "system": ".System"}
        body = "".join(_part(part, template, fields) for part in parts)
        return f"{_HEAD}{body}{{{{ $answer }}}}"
    fields = {"instruction": ".Content", "system": "$.System"}
    written = ""
    for part in parts:
        text = _part(part, template, fields)
        written += f"{{{{ if $first }}}}{text}{{{{ end }}}}" if part.once and text else text
    return (
        '{{- $first := true }}{{- range .Messages }}{{- if eq .Role "user" }}'
        f"{written}{{{{ $first = false }}}}"
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{_go_text(end)}'
        "{{ end }}{{ end }}"
    )


def _part(part: Part, template: Template, fields: dict[str, str]) -> str:
    column = part.when or part.unless
    text = _text(default_text(part.text), template, fields)
    if not column or (column in fields and column != "system"):
        return text if part.unless == "" else ""
    if column not in fields:
        return "" if part.when else text
    if template.system:  # there is always one
        return text if part.when else ""
    # Ollama counts bytes, so a least length cannot be asked for.
    there = f"{{{{ if {fields['system']} }}}}"
    return (
        f"{there}{text}{{{{ end }}}}" if part.when else f"{there}{{{{ else }}}}{text}{{{{ end }}}}"
    )


def _text(text: str, template: Template, fields: dict[str, str]) -> str:
    written = ""
    for literal, column in pieces(text):
        written += _go_text(literal)
        if column == "system" and template.system:
            # Ollama cannot tell an empty system text from none.
            default = _go_text(default_text(template.system))
            system = fields["system"]
            written += (
                f"{{{{ if {system} }}}}{{{{ {system} }}}}{{{{ else }}}}{default}{{{{ end }}}}"
            )
        elif column in fields:
            written += f"{{{{ {fields[column]} }}}}"
    return written


def _go_text(text: str) -> str:
    """Text for a Go template within the triple quotes of a Modelfile.

    Ollama's reader of Modelfiles drops what Go's strconv.IsPrint does not take for printable.
    """
    special = re.compile(r'\{+|"{2,}|"$')
    found = special.sub(lambda match: _go_string(match[0]), text)
    return "".join(c if c == "\n" or c.isprintable() else _go_string(c) for c in found)


def _go_string(text: str) -> str:
    return '{{ "' + "".join(f"\\U{ord(char):08x}" for char in text) + '" }}'
