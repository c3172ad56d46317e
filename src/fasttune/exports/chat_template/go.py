"""A prompt format as a Go template: the TEMPLATE of an Ollama Modelfile."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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


_OLLAMA_IN_TURNS = {"instruction": ".Content", "system": "$.System"}


def ollama_template(skeleton: Skeleton, later: Skeleton | None = None, eos: str = "") -> str:
    """The Go template of a Modelfile. Columns other than instruction and system count as absent.

    Args:
        later: a turn that is not the first; None where the format holds one turn.
        eos: what ends an earlier answer.
    """
    if later is None:
        return f"{_OLLAMA_HEAD}{_ollama_nodes(skeleton.nodes, _OLLAMA_FIELDS)}{_OLLAMA_TAIL}"
    first, others = (_ollama_nodes(each.nodes, _OLLAMA_IN_TURNS) for each in (skeleton, later))
    return (
        '{{- $first := true }}{{- range .Messages }}{{- if eq .Role "user" }}'
        f"{{{{ if $first }}}}{first}{{{{ else }}}}{others}{{{{ end }}}}{{{{ $first = false }}}}"
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{_go_text(eos)}'
        "{{ end }}{{ end }}"
    )


def _ollama_nodes(nodes: Sequence[Node], fields: Mapping[str, str]) -> str:
    text = ""
    for node in nodes:
        if isinstance(node, str):
            text += _go_text(node)
        elif isinstance(node, Field):
            text += f"{{{{ {fields.get(node.column, repr(''))} }}}}"
        elif node.column == "system":
            # Ollama cannot tell an empty system text from none, and counts bytes.
            inner = _ollama_nodes(node.cases[0][1], fields)
            otherwise = _ollama_nodes(node.otherwise, fields)
            text += f"{{{{ if {fields['system']} }}}}{inner}"
            text += (otherwise and f"{{{{ else }}}}{otherwise}") + "{{ end }}"
        else:
            text += _ollama_nodes(node.otherwise, fields)
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
