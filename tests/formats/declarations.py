"""Random declarations of formats, and rows for them: what nobody thought of."""

from __future__ import annotations

from hypothesis import strategies as st

from fasttune import FasttuneError, Row, Template, choose, given, learn

BITS = [
    *("<|a|>", "<b>", "</b>", "[C]", "### D:", "E:", "F", "f ", " ", "\n", "\n\n", "-", "--", "="),
    *("{", "}", "{{", "%}", "{%", "{#", "x", "ab", "aba", '"', "'", "\\n", "\\u0041", "é", "日"),
]
TAGS = ["<|a|>", "<b>", "[C]", "### D:", "\nE: ", "{f}:"]
LITERAL = st.lists(st.sampled_from(BITS), max_size=3).map("".join)
ROW_COLUMNS = ("topic", "language")
VALUES = st.sampled_from(["", "en", "pt", "pt-BR", "PT_br", "zz", "xx"])


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def written(columns: tuple[str, ...]) -> st.SearchStrategy[str]:
    piece = st.one_of(LITERAL.map(escaped), st.sampled_from([f"{{{c}}}" for c in columns]))
    return st.lists(piece, min_size=1, max_size=4).map("".join)


def choices(text: st.SearchStrategy[str]) -> st.SearchStrategy:
    keys = st.lists(st.sampled_from(["en", "pt", "zz", ""]), min_size=1, max_size=3, unique=True)
    return st.builds(
        lambda by, keys, texts: choose(by, dict(zip(keys, texts, strict=False)), keys[0]),
        st.sampled_from(ROW_COLUMNS),
        keys,
        st.lists(text, min_size=3, max_size=3),
    )


def conditions(columns: tuple[str, ...]) -> st.SearchStrategy[dict]:
    condition = st.builds(
        lambda key, column, least: {key: column, "min_length": least},
        st.sampled_from(["when", "unless"]),
        st.sampled_from(columns),
        st.integers(1, 3),
    )
    merged = st.builds(lambda c, once: {**c, "once": once}, st.just({}) | condition, st.booleans())
    return merged


GIVEN_COLUMNS = ("system", "instruction", "input", *ROW_COLUMNS)
GIVEN = st.builds(
    lambda section, text, more: given(section, text, **more),
    st.sampled_from(["one", "two"]),
    written(GIVEN_COLUMNS) | choices(written(GIVEN_COLUMNS)),
    conditions(GIVEN_COLUMNS),
)


@st.composite
def learned(draw, column: str):
    head, tail = draw(st.sampled_from(TAGS)), draw(st.sampled_from(["", "\n", "</b>", " F"]))
    text = f"{escaped(head)}{{{column}}}{escaped(tail)}"
    return learn(f"{column} text", text, **draw(st.just({}) | conditions((column, "input"))))


@st.composite
def templates(draw) -> Template:
    """A declaration that is valid."""
    columns = draw(
        st.lists(st.sampled_from(["reasoning", "output", "steps"]), min_size=1, unique=True)
    )
    parts = [
        *draw(st.lists(GIVEN, max_size=3)),
        given("ask", escaped(draw(LITERAL)) + "{instruction}"),
        *[draw(learned(column)) for column in columns],
    ]
    if draw(st.booleans()):
        parts.append(learn("end", draw(LITERAL.map(escaped)), once=draw(st.booleans())))
    kind = {
        "system": draw(LITERAL | choices(LITERAL)),
        "conversations": draw(st.booleans()),
        "columns": ["topic"],
    }
    kind["system_wins"] = bool(kind["system"]) and draw(st.booleans())
    try:
        return Template(name="random", parts=parts, **kind)
    except FasttuneError:
        kept = [part for part in parts if part.given]
        return Template(name="random", parts=[*kept, learn("answer", "{output}")], **kind)


TEXT = st.lists(st.sampled_from(BITS) | st.text(max_size=2), max_size=4).map("".join)


@st.composite
def rows(draw, template: Template, turns: int = 3) -> Row:
    """A row that the format can be asked with."""
    asked = ["instruction", *template.targets.values()]

    def turn(last: bool) -> dict[str, str]:
        found = {column: draw(TEXT) for column in asked if column != "steps"}
        return {**found, "input": draw(TEXT)} if last else found

    count = draw(st.integers(1, turns)) if template.conversations else 1
    row = Row.of(
        {**turn(True), "system": draw(TEXT), "steps": draw(TEXT)}
        | {column: draw(VALUES) for column in ROW_COLUMNS},
        [turn(False) for _ in range(count - 1)],
    )
    needed = [c for c in template.required if c not in asked and not row.get(c)]
    return row.with_turn(dict.fromkeys(needed, "some"))
