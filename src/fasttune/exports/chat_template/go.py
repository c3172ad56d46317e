"""A prompt format as a Go template: the TEMPLATE of an Ollama Modelfile."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fasttune.exports.chat_template.skeleton import Field, Node, Skeleton

# Without .Messages, Ollama would render every earlier turn by itself and put them in a row.
_OLLAMA_HEAD = """\
{{- $instruction := "" }}{{- $answer := "" }}
{{- range .Messages }}
{{- if eq .Role "user" }}{{ $instruction = .Content }}{{ $answer = "" }}{{ end }}
{{- if eq .Role "assistant" }}{{ $answer = .Content }}{{ end }}
{{- end }}"""
_OLLAMA_TAIL = "{{ $answer }}"
_OLLAMA_FIELDS = {"instruction": "$instruction", "system": ".System"}


def ollama_template(skeleton: Skeleton) -> str:
    """The Go template of a Modelfile. Columns other than instruction and system count as absent."""
    return f"{_OLLAMA_HEAD}{_ollama_nodes(skeleton.nodes)}{_OLLAMA_TAIL}"


def _ollama_nodes(nodes: Sequence[Node]) -> str:
    text = ""
    for node in nodes:
        if isinstance(node, str):
            text += _go_text(node)
        elif isinstance(node, Field):
            text += f"{{{{ {_OLLAMA_FIELDS.get(node.column, repr(''))} }}}}"
        elif node.column == "system":
            # Ollama cannot tell an empty system text from none, and counts bytes.
            inner, otherwise = _ollama_nodes(node.cases[0][1]), _ollama_nodes(node.otherwise)
            text += f"{{{{ if .System }}}}{inner}" + (otherwise and f"{{{{ else }}}}{otherwise}")
            text += "{{ end }}"
        else:
            text += _ollama_nodes(node.otherwise)
    return text


def _go_text(text: str) -> str:
    """Text for a Go template within the triple quotes of a Modelfile.

    Ollama's reader of Modelfiles drops what Go's strconv.IsPrint does not take for printable.
    """
    special = re.compile(r'\{+|"{2,}|"$')
    found = special.sub(lambda match: _go_string(match[0]), text)
    return "".join(c if c == "\n" or c.isprintable() else _go_string(c) for c in found)


def _go_string(text: str) -> str:
    return '{{ "' + "".join(f"\\U{ord(char):08x}" for char in text) + '" }}'
