"""Read small YAML documents with the line of each key, and convert their values to types."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta, inspect

from fasttune.errors import FasttuneError, reason

FILE_BYTES, NESTING = 2**20, 20
"""Limits of a document, because the parser reads it whole and recurses into it."""

CHARACTERS = r"[^\0\ud800-\udfff]*"
"""NUL ends a text in C libraries, and UTF-8 cannot encode half of a surrogate pair."""
Text = Annotated[str, Meta(pattern=rf"^{CHARACTERS}\Z", description="a text in UTF-8 without NUL")]
Filled = Annotated[
    str, Meta(pattern=rf"^(?=\s*\S){CHARACTERS}\Z", description="a text in UTF-8 that is not empty")
]
Texts = Annotated[tuple[Text, ...], Meta(description="a list of texts, as [a, b] or a,b")]
Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]


def read_yaml(text: str) -> tuple[Any, dict[str, int]]:
    """Read one YAML document.

    Returns:
        the value, and the line of each key and list item, counted from 1. Names are dotted, and
        list items are counted from 0: "parts.2.text".

    Raises:
        ValueError: the text is not YAML, repeats a key, has an alias, or nests too deep.
    """
    import yaml

    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    except Exception as error:  # int(), date() and other constructors raise their own errors
        problem = str(error) if isinstance(error, yaml.YAMLError) else reason(error)
        raise ValueError(problem) from error
    return value, dict(_lines(node))


def read_yaml_file(path: Path, what: str) -> tuple[Any, dict[str, int]]:
    """Read a YAML file; see `read_yaml`. `what` is its role in errors, such as "the config"."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
        if len(content) > FILE_BYTES:
            raise ValueError(f"the file has more than {FILE_BYTES} bytes")
        return read_yaml(content.decode())
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else str(error)
        raise FasttuneError(
            f"cannot read {what}", f"{path}: {problem}", "give the path of a valid YAML file"
        ) from error


@cache
def _loader() -> Any:
    """SafeLoader with limits: without them, a small text can expand until memory is full."""
    import yaml

    def error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)

    class Bounded(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            mark: Any = self.peek_event().start_mark
            if self.check_event(yaml.AliasEvent):
                raise error("aliases (*name) are not supported", mark)
            if self.depth == NESTING:
                raise error(f"nested more than {NESTING} deep", mark)
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise error(f"the key '{key.value}' is there twice", key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            return node

    return Bounded


def _lines(node: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield the dotted name and the line of everything below a YAML node."""
    kind = getattr(node, "id", "")
    if kind == "mapping":
        children = [(key.value, key, value) for key, value in node.value]
    elif kind == "sequence":
        children = [(index, item, item) for index, item in enumerate(node.value)]
    else:
        return
    for name, marked, value in children:
        yield f"{prefix}{name}", marked.start_mark.line + 1
        yield from _lines(value, f"{prefix}{name}.")


def setting(key: str, value: Any, hint: Any, where: str) -> Any:
    """Convert the value of a setting; see `convert`. An error says where the value was set."""
    try:
        return convert(value, hint)
    except ValueError as error:
        raise refused(key, value, where, str(error)) from error


def check_fields(options: object) -> None:
    """Refuse a dataclass with a value out of its field's bounds; the error names the option."""
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        try:
            convert(value, hint)
        except ValueError as error:
            option = f"--{name.replace('_', '-')} {value}"
            raise FasttuneError(f"{name} is {value}", option, f"it takes {error}") from error


def refused(key: str, value: Any, where: str, wanted: str) -> FasttuneError:
    """Return the error for a value that a setting does not take."""
    text = "null" if value is None else shortened(value)
    return FasttuneError(f"'{key}' is {text}", where, f"it takes {wanted}")


def shortened(value: Any) -> str:
    """Shorten a value for an error."""
    huge = isinstance(value, int) and abs(value) >= 10**100
    text = "a number of more than 100 digits" if huge else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


_type_of = cache(inspect.type_info)


def convert(value: Any, hint: Any) -> Any:
    """Convert a value to a type, which may have bounds from msgspec.Meta.

    Text may stand for a number or, with commas, for a list; a number may stand for text.

    Raises:
        ValueError: the value does not fit; the error says what does.
    """
    kind = _type_of(hint)
    ready = _prepared(value, kind)
    try:
        return msgspec.convert(ready, hint, strict=not isinstance(ready, float))  # 2.0 as an int
    except msgspec.ValidationError:
        raise ValueError(_wanted(kind, value)) from None


def _prepared(value: Any, kind: inspect.Type) -> Any:
    """Turn the spellings of a value into the one that msgspec checks."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match kind:
        case inspect.Metadata(type=inner):
            return _prepared(value, inner)
        case inspect.UnionType(types=(inner, other)) if value not in _words(other):
            return _prepared(value, inner)
        case inspect.IntType() | inspect.FloatType() if isinstance(value, str):
            with suppress(ValueError):  # YAML 1.1 reads 1e-4 as text because it has no dot
                return float(value)
        case inspect.StrType() if number:
            return str(value)
        case inspect.LiteralType(values=words) if value not in words:
            # YAML 1.1 reads a bare on and off as booleans
            return {"True": "on", "False": "off", "None": "none"}.get(str(value), value)
        case inspect.VarTupleType(item_type=inner):
            items = value.split(",") if isinstance(value, str) else value
            if isinstance(items, (list, tuple)):
                items = [_prepared(item, inner) for item in items]
                items = [item.strip() if isinstance(item, str) else item for item in items]
                return [item for item in items if item != ""]
        case inspect.DictType(key_type=name, value_type=inner) if isinstance(value, Mapping):
            return {_prepared(k, name): _prepared(v, inner) for k, v in value.items()}
    return value


def _words(kind: inspect.Type) -> tuple[Any, ...]:
    """The values that may stand in place of a setting's usual type."""
    return kind.values if isinstance(kind, inspect.LiteralType) else (None,)


def _wanted(kind: inspect.Type, value: Any) -> str:
    """Describe the values that a type takes."""
    match kind:
        case inspect.Metadata(extra_json_schema={"description": str(text)}):
            return text
        case inspect.UnionType(types=(inner, other)):
            words = ["null" if word is None else str(word) for word in _words(other)]
            return f"{_wanted(inner, value)}, or {' or '.join(words)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=words):
            close = difflib.get_close_matches(str(value), [*map(str, words)], n=1)
            guess = f"; did you mean '{close[0]}'?" if close else ""
            return f"one of {', '.join(map(str, words))}{guess}"
        case inspect.VarTupleType(item_type=inspect.LiteralType(values=words) as inner):
            items = _prepared(value, kind)
            items = items if isinstance(items, list) else []
            wrong = next((item for item in items if item not in words), "")
            return f"a list, as [a, b] or a,b, where each item is {_wanted(inner, wrong)}"
        case inspect.IntType() | inspect.FloatType():
            what = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            start = f"from {kind.ge:.10g}" if kind.gt is None else f"above {kind.gt:.10g}"
            end = f"to {kind.le:.10g}" if kind.lt is None else f"to below {kind.lt:.10g}"
            return f"{what} {start} {end}"
    raise TypeError(f"no setting has the type {kind}")
