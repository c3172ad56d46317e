"""A format as data: what follows from its parts, and what is no format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, settings
from hypothesis import given as examples_of
from hypothesis import strategies as st

from fasttune import END, FasttuneError, Row, Segment, Template, choose, given, learn
from fasttune.formats.examples import EXAMPLES, examples
from fasttune.formats.template import (
    at_the_answer,
    format_differences,
    from_declaration,
    split_turns,
    tags_in,
)
from tests.formats.declarations import rows, templates

PLAIN = Template(
    name="plain",
    system="Be kind.",
    more_tags=["Q:", "A:"],
    parts=[
        given("system", "{system}\n"),
        given("instruction", "Q: {instruction}\nA:"),
        learn("response", "{output}"),
    ],
)
STEPS = Template(
    name="steps",
    conversations=True,
    system=choose("language", {"en": "Be brief.", "fr": "Sois bref."}, default="en"),
    columns=["topic"],
    parts=[
        given("system", "{system}", once=True),
        given("topic", " ({topic})", when="topic", min_length=3),
        given("instruction", "\nQ: {instruction}\n", unless="input"),
        given("instruction", "\nQ: {instruction} {{{input}}}\n", when="input"),
        learn("reasoning", "<think>{reasoning}</think>\n", when="reasoning"),
        learn("response", "A: {output}."),
    ],
)
ROW = {"instruction": "Add 2 and 3.", "output": "5"}


def test_segments_are_given_or_learned():
    assert PLAIN.rendered(ROW) == [
        Segment("system", "Be kind.\n", train=False),
        Segment("instruction", "Q: Add 2 and 3.\nA:", train=False),
        Segment("response", "5", train=True),
    ]


def test_render_is_all_segments_and_prompt_those_before_the_first_learned_one():
    assert PLAIN.render(ROW) == "Be kind.\nQ: Add 2 and 3.\nA:5"
    assert PLAIN.prompt(ROW) == "Be kind.\nQ: Add 2 and 3.\nA:"
    assert PLAIN.prompt({"instruction": "Add 2 and 3."}) == PLAIN.prompt(ROW)


def test_conditions_and_turns():
    talk = Row.of(
        {"instruction": "b", "input": "c", "output": "d", "topic": "sums", "language": "fr"},
        [{"instruction": "a", "reasoning": "r", "output": "e"}],
    )
    assert [(s.text, s.train) for s in STEPS.rendered(talk)] == [
        ("Sois bref.", False), (" (sums)", False), ("\nQ: a\n", False),
        ("<think>r</think>\n", True), ("A: e.", True), (END.text, True),
        (" (sums)", False), ("\nQ: b {c}\n", False), ("", True), ("A: d.", True),
    ]  # fmt: skip
    assert (
        STEPS.prompt(talk) == "Sois bref. (sums)\nQ: a\n<think>r</think>\nA: e. (sums)\nQ: b {c}\n"
    )
    assert STEPS.prompt({"instruction": "a", "topic": "no"}) == "Be brief.\nQ: a\n"


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("<think>2 + 3</think>\nA: 5.", {"reasoning": "2 + 3", "response": "5"}),
        ("A: 5.", {"reasoning": "", "response": "5"}),
        ("A: 5", {"reasoning": "", "response": "5"}),
        ("<think>2 +", {"reasoning": "2 +", "response": ""}),
        ("<think>a\nA: b</think>\nA: c..", {"reasoning": "a\nA: b", "response": "c."}),
        ("", {"reasoning": "", "response": ""}),
    ],
)
def test_parse_gives_the_sections(text, sections):
    assert STEPS.parse(text) == STEPS.parsed(text) == sections


@pytest.mark.parametrize(
    ("learned", "completion"),
    [
        ([learn("think", "<think>"), learn("a", "{a}"), learn("b", "</think>{b}")],
         "<think>one</think>two"),
        ([learn("a", "{a} END"), learn("b", "\n{b}")], "o\nne END\ntwo"),
        ([learn("a", "{a}</a>"), learn("b", "\nAnswer: {b}")], "x\nAnswer: y</a>\nAnswer: z"),
        ([learn("a", "{a}<x>"), learn("b", "<x>{b}")], "one<x><x>two"),
        ([learn("a", "{a}\n"), learn("no", "No: {no}\n", when="no"), learn("b", "Yes: {b}")],
         "one\nYes: two"),
    ],
    ids=repr,
)  # fmt: skip
def test_parse_undoes_what_is_learned(learned, completion):
    template = Template(name="t", parts=[given("q", "{instruction}"), *learned])
    sections = template.parse(completion)
    turn = {"instruction": "", **sections}
    assert template.render(turn) == completion and "" not in template.tags


def test_what_follows_from_the_parts():
    assert STEPS.tags == ("<think>", "</think>")
    assert STEPS.targets == {"reasoning": "reasoning", "response": "output"}
    assert STEPS.required == ("instruction", "output")
    assert STEPS.reads == (
        "system", "topic", "instruction", "input", "reasoning", "output", "language",
    )  # fmt: skip
    assert STEPS.response == ("response", "output")
    assert STEPS.chooses_language and not PLAIN.chooses_language
    assert PLAIN.tags == ("Q:", "A:") and PLAIN.required == ("instruction", "output")


def test_system_texts():
    assert PLAIN.render({**ROW, "system": "Go."}).startswith("Go.\n")
    own = PLAIN.with_system("Run.")
    assert own.render({**ROW, "system": "Go."}).startswith("Run.\n")
    assert own.identity != PLAIN.identity and PLAIN.with_system("") is PLAIN
    assert STEPS.with_system("{x}").prompt({"instruction": "a"}) == "{x}\nQ: a\n"


@pytest.mark.parametrize(
    ("value", "key"),
    [("fr", "fr"), ("fr-CA", "fr"), ("FR_ca", "fr"), ("xx", "en"), ("", "en"), (None, "en")],
)
def test_a_text_is_chosen_by_a_value(value, key):
    assert STEPS.system.key(value) == key


def test_tags_in_names_column_and_tag_of_every_field():
    row = Row.of(
        {"instruction": "</think> or <think>", "output": "<think> yes", "note": "<think>"},
        [{"instruction": "<think>", "output": ""}],
    )
    assert tags_in(STEPS, row) == [
        ("instruction", "<think>"), ("instruction", "</think>"), ("output", "<think>"),
    ]  # fmt: skip
    assert tags_in(PLAIN, {"instruction": "A: b"}) == [("instruction", "A:")]


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("<|user|>{instruction}", ["<|user|>"]),
        ("[INST] {instruction} [/INST]", ["[INST]", "[/INST]"]),
        ("# A task\n## {instruction}\n### Your answer: ", ["# A task", "### Your answer:"]),
        ("USER: {instruction} a < b [x]", []),
    ],
)
def test_markup_is_a_tag(text, tags):
    parts = [given("a", text), learn("b", "{output}")]
    assert [*Template(name="t", parts=parts).tags] == tags


def test_examples_tell_apart_no_context_one_character_and_more():
    assert {row["input"] for row in EXAMPLES} == {"", "x", "Some context, in two words."}
    assert {row["language"] for row in EXAMPLES} == {"en", "ja", "zh", "ko", "es", "fr", "de"}
    assert [len(row.turns) for row in examples(STEPS)] == [1] * 24 + [2, 3, 2, 4, 2]
    assert {row["topic"] for row in examples(STEPS)} == {"some"}


# Identity


SAVED = "8bac50574621d067c52da891b3f57abf833d35c95a9f18fa3ee8bb2b70a8bafe"


def test_identity_is_the_same_on_every_machine():
    """Saved runs hold it."""
    assert PLAIN.identity == SAVED
    program = "from tests.formats.test_template import PLAIN; print(PLAIN.identity)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == SAVED, done.stderr


def test_identity_is_that_of_the_format_alone():
    named = from_declaration({**PLAIN.declaration, "name": "other", "description": "words"})
    assert named.identity == PLAIN.identity
    for key, value in (
        ("system", "Be."), ("more_tags", ["Q:"]), ("conversations", True), ("end", "<end>"),
        ("system_wins", True), ("columns", ["topic"]),
    ):  # fmt: skip
        assert from_declaration({**PLAIN.declaration, key: value}).identity != PLAIN.identity
    for part in ({"learn": "answer"}, {"text": " {output}"}, {"once": True, "text": "R{output}"}):
        *before, last = PLAIN.declaration["parts"]
        changed = {**PLAIN.declaration, "parts": [*before, {**last, **part}]}
        assert from_declaration(changed).identity != PLAIN.identity


def test_differences_are_told():
    other = from_declaration(
        {**PLAIN.declaration, "system": "Be.", "parts": PLAIN.declaration["parts"][1:]}
    )
    assert format_differences(PLAIN, PLAIN) == []
    assert format_differences(PLAIN, other) == [
        "system: 'Be kind.' became 'Be.'",
        "part 1: {'given': 'system', 'text': '{system}\\n'} became "
        "{'given': 'instruction', 'text': 'Q: {instruction}\\nA:'}",
        "part 2: {'given': 'instruction', 'text': 'Q: {instruction}\\nA:'} became "
        "{'learn': 'response', 'text': '{output}'}",
        "part 3: {'learn': 'response', 'text': '{output}'} became None",
    ]


# What no one has thought of


@settings(deadline=None, max_examples=80)
@examples_of(st.data())
def test_parse_is_the_inverse_of_the_learned_parts(data):
    template = data.draw(templates())
    row = data.draw(rows(template))
    assume(not tags_in(template, row))
    for number, turn in enumerate(split_turns(template.rendered(row))):
        values = row.turn(number)
        values["system"] = template.system_text(values)
        written = {
            part.section: values[part.fields[0]] if part.applies(values, number == 0) else ""
            for part in template.parts
            if part.learned and part.fields
        }
        assert template.parse("".join(s.text for s in at_the_answer(turn)[1])) == written


@settings(deadline=None, max_examples=100)
@examples_of(st.data())
def test_the_prompt_begins_the_text_and_knows_no_target(data):
    template = data.draw(templates())
    row = data.draw(rows(template))
    prompt = template.prompt(row)
    assert template.render(row).startswith(prompt)
    asked = row.without([*template.targets.values()])
    if asked.columns == row.columns:  # what is no column of a turn is learned in earlier ones, too
        assert template.prompt(asked) == prompt


@settings(deadline=None, max_examples=100)
@examples_of(st.data())
def test_a_declaration_read_back_is_the_format(data):
    template = data.draw(templates())
    again = from_declaration(json.loads(json.dumps(template.declaration)))
    row = data.draw(rows(template))
    assert again.identity == template.identity and again.rendered(row) == template.rendered(row)
    assert format_differences(template, again) == []


@settings(deadline=None)
@examples_of(templates(), st.text())
def test_any_text_can_be_parsed(template, text):
    assert template.parse(text).keys() == template.targets.keys()
    json_like = Template(name="t", parts=[ASK, learn("a", '{{"say": "{output}"}}')])
    assert json_like.parse(f'{{"say": "{text}"}}') == {"a": text}


# What is no format


ASK = given("ask", "{instruction}")
ANSWER = learn("answer", "{output}")
LANGUAGES = choose("language", {"en": "a"}, "en")
INVALID = {
    "eos": ([given("eos", "x"), ANSWER], 0, "'eos' is what fasttune adds"),
    "no section": ([ASK, given("", "x"), ANSWER], 1, "it needs one section"),
    "two sections": ([given("a", "x", learn="b"), ANSWER], 0, "it needs one section"),
    "when and unless": (
        [given("a", "x", when="input", unless="input"), ANSWER], 0, "when and unless exclude",
    ),
    "no length": ([ASK, given("a", "x", when="input", min_length=0), ANSWER], 1, "min_length is 0"),
    "no field name": ([given("a", "{}"), ANSWER], 0, "'{}' is not a plain column name"),
    "a number": ([given("a", "{0}"), ANSWER], 0, "'{0}' is not a plain column name"),
    "an attribute": ([given("a", "{a.b}"), ANSWER], 0, "'{a.b}' is not a plain column name"),
    "a conversion": ([given("a", "{input!r}"), ANSWER], 0, "'{input}' is not a plain column name"),
    "a format": ([given("a", "{input:>9}"), ANSWER], 0, "'{input}' is not a plain column name"),
    "half a brace": ([given("a", "}"), ANSWER], 0, "Single '}' encountered in format string"),
    "half a field": ([ASK, learn("a", "{output")], 1, "expected '}' before end of string"),
    "an unknown column": (
        [given("a", "{inptu}"), ANSWER], 0, "no column 'inptu' that a prompt may show",
    ),
    "an unknown condition": ([ASK, given("a", "x", when="topic"), ANSWER], 1, "no column 'topic'"),
    "an unknown condition of learning": (
        [ASK, learn("a", "A{output}", unless="outptu")], 1, "no column 'outptu'",
    ),
    "choosing by an unknown column": (
        [given("a", choose("tone", {"": "x"}, "")), ANSWER], 0, "no column 'tone'",
    ),
    "choosing by a turn": (
        [given("a", choose("input", {"": "x"}, "")), ANSWER], 0, "'input' differs from turn to",
    ),
    "no default": (
        [given("a", choose("language", {"en": "x"}, "de")), ANSWER], 0, "default 'de' has no text",
    ),
    "given later": ([ASK, ANSWER, given("b", "x")], 2, "it is given, but follows a learned part"),
    "learned by choice": (
        [ASK, learn("a", LANGUAGES)], 1, "a learned text cannot be chosen by a column",
    ),
    "two columns": ([ASK, learn("a", "{output} {reasoning}")], 1, "it learns two columns"),
    "absent without a sign": (
        [ASK, learn("a", "\n{reasoning}", when="reasoning"), ANSWER], 1, "it may be absent, so",
    ),
    "learned first": ([ANSWER], 0, "nothing is given before it"),
    "nothing between": ([ASK, ANSWER, learn("b", "{b}")], 2, "separate it from 'answer': only ''"),
    "white space between": ([ASK, learn("a", "{a} \n"), learn("b", " {b}")], 2, "only ' \\n ' is"),
    "nothing where one is absent": (
        [ASK, learn("a", "{a}"), learn("b", "B:{b}.", when="b"), learn("c", "{c}")], 3, "only ''",
    ),
    "alike": (
        [ASK, learn("a", "<a>{a}", when="a"), learn("b", "<a>\n{b}")], 2, "both begin alike",
    ),
    "twice": ([ASK, ANSWER, learn("answer", "A:{reasoning}")], 2, "section is learned twice"),
    "learned and given": ([ASK, learn("a", "{input}")], 1, "{input} is given already"),
}  # fmt: skip


@pytest.mark.parametrize("kind", INVALID)
def test_an_invalid_part_is_named(kind):
    parts, at, message = INVALID[kind]
    with pytest.raises(FasttuneError) as caught:
        Template(name="mine", parts=parts)
    section = parts[at].section
    assert caught.value.message.startswith(f"template 'mine', part {at + 1} '{section}': ")
    assert message in caught.value.message
    assert caught.value.where == f"parts[{at}]" and caught.value.hint


@pytest.mark.parametrize(
    ("settings", "where", "message"),
    [
        ({"parts": []}, "parts", "learns nothing"),
        ({"parts": [ASK]}, "parts", "learns nothing"),
        ({"parts": [ASK, learn("end", "<end>")]}, "parts", "learns nothing"),
        ({"system": choose("language", {}, "en")}, "system", "default 'en' has no text"),
        ({"system": choose("lang", {"en": ""}, "en")}, "system", "no column 'lang'"),
        ({"system_wins": True}, "system_wins", "of every row, and there is none"),
        ({"system": None}, "system", "got `null`"),
        ({"more_tags": "USER:"}, "more_tags", "got `str`"),
        ({"columns": "topic"}, "columns", "got `str`"),
        ({"conversations": "no"}, "conversations", "got `str`"),
        ({"parts": ["Q: {instruction}"]}, "parts[0]", "got `str`"),
        ({"parts": [given("a", 5), ANSWER]}, "parts[0].text", "got `int`"),
        ({"name": "a/b"}, "name", "'a/b'"),
        ({"name": None}, "name", "None"),
    ],
)
def test_an_invalid_declaration_is_refused(settings, where, message):
    with pytest.raises(FasttuneError) as caught:
        Template(**{"name": "mine", "parts": [ASK, ANSWER], **settings})
    assert message in caught.value.message and caught.value.where == where and caught.value.hint


VALID = {
    "name": "mine",
    "parts": [
        {"given": "ask", "text": "Q: {instruction}"},
        {"learn": "answer", "text": "{output}"},
    ],
}


@pytest.mark.parametrize(
    ("changed", "where", "message", "hint"),
    [
        ({"systm": "x"}, "systm", "no key 'systm' here", "did you mean 'system'"),
        ({"parts": [{"given": "a", "txt": "x"}]}, "parts[0].txt", "key 'txt'", "mean 'text'"),
        ({"parts": [{"given": "a"}]}, "parts[0]", "missing required field `text`", "write given"),
        ({"parts": [{"given": "a", "text": 5}]}, "parts[0].text", "got `int`", "write given"),
        ({"parts": "x"}, "parts", "Expected `array`, got `str`", "write given"),
        ({"system": {"by": "language", "texts": {}, "defualt": ""}}, "system.defualt",
         "no key 'defualt'", "did you mean 'default'?"),
        ({"parts": [{"given": "a", "text": {"by": "language", "txts": {}}}]}, "parts[0].text.txts",
         "no key 'txts'", "did you mean 'texts'?"),
        ({"name": 5}, "name", "got `int`", "write given"),
        ({"parts": VALID["parts"][:1]}, "parts", "learns nothing", "add a learned part"),
    ],
)  # fmt: skip
def test_a_declaration_from_a_file_names_the_place(changed, where, message, hint):
    with pytest.raises(FasttuneError) as caught:
        from_declaration({**VALID, **changed})
    assert message in caught.value.message and caught.value.where == where
    assert hint in caught.value.hint


@pytest.mark.parametrize("declared", [None, [], "mine", 5, {}, {"name": "mine"}])
def test_what_is_no_declaration(declared):
    with pytest.raises(FasttuneError):
        from_declaration(declared)


# Formats whose text is computed


class Shout(Template):
    targets = {"loud": "output"}
    tags = ("!",)

    def segments(self, row):
        if row["instruction"] == "fail":
            raise ValueError("too quiet")
        yield Segment("ask", f"{row.get('system', '')}{row['instruction'].upper()}!", train=False)
        yield Segment("loud", row.get("output", "").upper(), train=True)

    def parse(self, text):
        return {"loud": text[:5] if text != "none" else None}


SHOUT = Shout(name="shout", system="S. ")


def raised(function, *arguments):
    with pytest.raises(FasttuneError) as caught:
        function(*arguments)
    return caught.value


def test_a_computed_format_is_asked_no_further_than_its_prompt():
    assert SHOUT.computed and not PLAIN.computed
    assert SHOUT.prompt({"instruction": "go"}) == "S. GO!"
    assert SHOUT.render({"instruction": "go", "output": "up", "system": "T. "}) == "T. GO!UP"
    assert SHOUT.with_system("U. ").prompt({"instruction": "a", "system": "T. "}) == "U. A!"
    assert (SHOUT.tags, SHOUT.required, SHOUT.reads) == (("!",), ("instruction", "output"), ())


def test_what_it_raises_names_its_file_and_line():
    error = raised(SHOUT.rendered, {"instruction": "fail"})
    assert error.message == "template 'shout' fails: ValueError: too quiet"
    place, row = error.where.splitlines()
    assert place.startswith(f"{__file__}, line ")
    assert place.endswith('raise ValueError("too quiet")') and row == "row: 'fail'"
    error = raised(SHOUT.prompt, {"output": "go"})
    assert error.message == "template 'shout' fails: KeyError: 'instruction'"
    error = raised(SHOUT.parsed, 5)
    assert "TypeError: 'int' object is not subscriptable" in error.message
    assert __file__ in error.where
    assert "parse() gives {'loud': None}" in raised(SHOUT.parsed, "none").message


@pytest.mark.parametrize("made", ["text", None, ("a", "b", True), Segment("a", 5, True)])
def test_segments_of_anything_else_are_refused(made):
    class Odd(Template):
        def segments(self, row):
            return [made]

    error = raised(Odd(name="odd").rendered, {"instruction": "a"})
    assert f"segments() gives {made!r}: Segment(name, text, train) is wanted" in error.message
    assert __file__ in error.where


@pytest.mark.parametrize(
    ("attribute", "value"), [("tags", "<a>"), ("targets", {"a": None}), ("required", "output")]
)
def test_its_attributes_have_types(attribute, value):
    kind = type("Odd", (Shout,), {attribute: value})
    error = raised(lambda: kind(name="odd"))
    assert error.message.startswith("template 'odd': Expected")


def test_parse_of_a_computed_format_is_the_first_target_unless_it_has_its_own():
    class Quiet(Shout):
        parse = Template.parse

    assert Quiet(name="quiet").parsed("whatever") == {"loud": "whatever"}
    assert SHOUT.parsed("louder!") == {"loud": "loude"}


def test_its_identity_is_that_of_its_file(tmp_path):
    from fasttune import load_plugin

    def identity(text):
        (tmp_path / "mine.py").write_text(
            "from fasttune import *\nclass Mine(Template):\n    def segments(self, row):\n"
            f"        yield Segment('a', {text!r}, True)\n"
            "@hookimpl\ndef register_templates(): return [Mine(name='mine')]\n"
        )
        return load_plugin(tmp_path / "mine.py").template("mine").identity

    assert identity("a") == identity("a") != identity("b")
    assert SHOUT.declaration == {"name": "shout", "system": "S. "}
    assert SHOUT.file == Path(__file__)
