"""A format as a Go template: the TEMPLATE of an Ollama Modelfile.

Columns other than instruction and system count as absent: Ollama has no variables for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fasttune.errors import FasttuneError
from fasttune.formats.parts import Part, chosen_text, split_format
from fasttune.formats.template import Template

# Without .Messages, Ollama would render every earlier turn by itself and put them in a row.
_HEAD = """\
{{- $instruction := "" }}{{- $answer := "" }}
{{- range .Messages }}
{{- if eq .Role "user" }}{{ $instruction = .Content }}{{ $answer = "" }}{{ end }}
{{- if eq .Role "assistant" }}{{ $answer = .Content }}{{ end }}
{{- end }}"""


def ollama_template(template: Template, end: str) -> str:
    """The Go template of a Modelfile; `end` is the text that ends an earlier answer.

    Raises:
        FasttuneError: the text of the format is computed.
    """
    if template.computed:
        raise FasttuneError(
            f"template '{template.name}' computes its text, so it cannot be an Ollama template",
            str(template.file),
            "export it as gguf, and prompt it yourself",
        )
    given = [part for part in template.parts if not part.learned]
    if not template.conversations:
        fields = {"instruction": "$instruction", "system": ".System"}
        body = "".join(_part(part, template, fields) for part in given)
        return f"{_HEAD}{body}{{{{ $answer }}}}"
    fields = {"instruction": ".Content", "system": "$.System"}
    body = ""
    for part in given:
        text = _part(part, template, fields)
        body += _if("$first", text) if part.once and text else text
    return (
        '{{- $first := true }}{{- range .Messages }}{{- if eq .Role "user" }}'
        f"{body}{{{{ $first = false }}}}"
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{_go_text(end)}'
        "{{ end }}{{ end }}"
    )


def _part(part: Part, template: Template, fields: Mapping[str, str]) -> str:
    column = part.when or part.unless
    text = _text(chosen_text(part.text, {}), template, fields)
    has_text = column == "instruction" or (column == "system" and bool(template.system))
    if not column or has_text or column not in fields:
        return text if has_text == bool(part.when) else ""
    # Ollama counts bytes, so a least length cannot be asked for.
    return _if(fields[column], text) if part.when else _if(fields[column], "", text)


def _if(condition: str, text: str, otherwise: str = "") -> str:
    other = f"{{{{ else }}}}{otherwise}" if otherwise else ""
    return f"{{{{ if {condition} }}}}{text}{other}{{{{ end }}}}"


def _text(text: str, template: Template, fields: Mapping[str, str]) -> str:
    written = ""
    for literal, column in split_format(text):
        written += _go_text(literal)
        value = f"{{{{ {fields[column]} }}}}" if column in fields else ""
        if column == "system" and template.system:
            # Ollama cannot tell an empty system text from none.
            value = _if(fields[column], value, _go_text(chosen_text(template.system, {})))
        written += value
    return written


def _go_text(text: str) -> str:
    """Text for a Go template within the triple quotes of a Modelfile.

    Ollama's reader of Modelfiles drops what Go's strconv.IsPrint does not take for printable.
    """
    safe = re.sub(r'\{+|"{2,}|"$', lambda match: _go_string(match[0]), text)
    return "".join(c if c == "\n" or c.isprintable() else _go_string(c) for c in safe)


def _go_string(text: str) -> str:
    return '{{ "' + "".join(f"\\U{ord(char):08x}" for char in text) + '" }}'
