"""What a person is shown of a row."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from fasttune_plugins.chatml import CHATML
from msgspec import structs
from rich.console import Console

from fasttune import FasttuneError, Row, Template, given, learn
from fasttune.data.rows import StoredRows
from fasttune.encoding.encode import encode
from fasttune.inspection.preview import (
    TerminalPreview,
    pick,
    preview_html,
    preview_row,
    visible,
    whole_characters,
)
from tests.conftest import cli

SHORT = Template(
    name="short",
    parts=[given("question", "Q: {instruction}\n"), learn("answer", "{output}")],
)


ROW = Row.of({"instruction": "東京 <b>&", "output": "a\tb\nc"})
# 東 is one character in two tokens, and so is 京.
QUESTION = [([48], "Q"), ([25], ":"), ([10545, 251, 109], " 東"), ([12859, 105], "京")]
QUESTION += [([1279], " <"), ([65], "b"), ([29], ">"), ([5], "&"), ([198], "\n")]
ANSWER = [([64], "a"), ([197], "\t"), ([65], "b"), ([198], "\n"), ([66], "c")]


@pytest.fixture
def shown(phi2_tokenizer):
    return preview_row(SHORT, ROW, phi2_tokenizer, number=3, model="phi-2", max_length=20)


def test_sections_and_pieces(shown):
    assert [(s.name, s.start, s.end, s.train) for s in shown.sections] == [
        ("question", 0, 12, False),
        ("answer", 12, 17, True),
        ("eos", 17, 18, True),
    ]
    assert [[(p.ids, p.text) for p in s.pieces] for s in shown.sections] == [
        QUESTION,
        ANSWER,
        [([50256], "<|endoftext|>")],
    ]
    assert (shown.prompt_length, shown.trained, shown.tokens) == (12, 6, 18)


@pytest.mark.parametrize(
    ("max_length", "verdict"), [(18, "fits into 18"), (17, "TOO LONG: 1 over 17")]
)
def test_summary_says_whether_it_fits(phi2_tokenizer, max_length, verdict):
    shown = preview_row(SHORT, ROW, phi2_tokenizer, number=1, model="m", max_length=max_length)
    assert shown.summary == f"prompt 12 tokens, trained 6 of 18, {verdict}"
    assert shown.as_dict()["too_long"] is (max_length == 17)


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "日本語の薔薇と🗻👨‍👩‍👧",
        "한국어 العربية",
        "tab\t\tand    runs\n\n",
        "replacement \ufffd.",
    ],
)
def test_pieces_are_whole_characters_and_lose_nothing(phi2_tokenizer, text):
    ids = phi2_tokenizer(text).input_ids
    groups = list(whole_characters(ids, phi2_tokenizer))
    assert "".join(characters for _ids, characters in groups) == text
    assert [token for tokens, _text in groups for token in tokens] == ids


def test_bytes_that_make_no_character_are_shown_as_bytes(phi2_tokenizer):
    ids = phi2_tokenizer("東京").input_ids
    assert ids == [30266, 109, 12859, 105]
    cut = whole_characters(ids[1:3], phi2_tokenizer)
    assert list(cut) == [([109], "⟨B1⟩"), ([12859], "⟨E4⟩⟨BA⟩")]
    texts = [text for _ids, text in whole_characters([109, 64, *ids[:2]], phi2_tokenizer)]
    assert texts == ["⟨B1⟩", "a", "東"]


def test_pieces_of_a_sentencepiece_vocabulary():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "▁Hi", "<0xE6>", "<0x9D>", "<0xB1>", "</s>"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.decoder = decoders.ByteFallback()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    groups = list(whole_characters([1, 2, 3, 4, 5], tokenizer))
    assert groups == [([1], " Hi"), ([2, 3, 4], "東"), ([5], "</s>")]


def test_visible_marks_what_cannot_be_seen():
    assert visible("a b\t\n") == "a·b→⏎"
    assert visible("\x1b[31m\u202e\u200b\u3000\r") == "⟨U+001B⟩[31m⟨U+202E⟩⟨U+200B⟩⟨U+3000⟩⟨U+000D⟩"
    assert visible("é東🗻") == "é東🗻"


# Terminal


def rendered(shown, *, colour, width=80, ids=False):
    console = Console(
        file=io.StringIO(),
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        width=width,
        highlight=False,
    )
    console.print(TerminalPreview(shown, ids))
    return console.file.getvalue()


def test_without_colours_a_gutter_and_bars_tell(shown):
    text = rendered(shown, colour=False)
    assert "\x1b" not in text
    assert [line.rstrip() for line in text.splitlines()] == [
        "template short, row 3, tokenizer of phi-2",
        "prompt 12 tokens, trained 6 of 18, fits into 20",
        "▌ trained   given   · space  → tab  ⏎ newline",
        "",
        "  question, given, 12 tokens",
        "  Q│:│·東│京│·<│b│>│&│⏎",
        "",
        "---- generation begins here ----",
        "▌ answer, trained, 5 tokens",
        "▌ a│→│b│⏎",
        "▌ c",
        "",
        "▌ eos, trained, 1 token",
        "▌ <|endoftext|>",
    ]


def test_with_colours_neighbours_and_sections_differ(shown):
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80)
    shades = [
        (segment.text, segment.style.bgcolor.name)
        for segment in console.render(TerminalPreview(shown))
        if segment.style and segment.style.bgcolor and segment.style.color.name == "black"
    ][2:]  # after the legend
    assert "│" not in [text for text, _shade in shades]
    assert [text for text, _shade in shades] == [
        *(visible(text) for _ids, text in QUESTION + ANSWER),
        "<|endoftext|>",
    ]
    question, answer = shades[: len(QUESTION)], shades[len(QUESTION) : -1]
    for neighbours in (question, answer):
        assert all(a[1] != b[1] for a, b in zip(neighbours, neighbours[1:], strict=False))
    assert not {shade for _text, shade in question} & {shade for _text, shade in answer}


def test_ids_on_demand(shown):
    assert "10545" not in rendered(shown, colour=False)
    text = rendered(shown, colour=False, ids=True)
    assert "Q‹48› :‹25› ·東‹10545,251,109› 京‹12859,105› ·<‹1279›" in text
    assert "<|endoftext|>‹50256›" in text


def test_every_wrapped_line_has_its_gutter(phi2_tokenizer):
    row = Row.of({"instruction": "x", "output": "東京です。" * 40})
    shown = preview_row(SHORT, row, phi2_tokenizer, number=1, model="m", max_length=999)
    lines = rendered(shown, colour=False, width=40).splitlines()
    start = next(i for i, line in enumerate(lines) if "answer, trained" in line)
    body = lines[start + 1 : lines.index("", start)]
    assert len(body) > 5
    assert all(line.startswith("▌ ") for line in body)
    assert all(Console().measure(line).maximum <= 40 for line in body)
    assert "".join(line[2:].rstrip() for line in body).replace("│", "") == "東京です。" * 40


# HTML


class Page(HTMLParser):
    """The tokens of a page: (section classes, title, text)."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.tokens, self.headings, self.tags = [], [], [], []
        self.inside = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        if tag == "section":
            self.sections.append(attributes["class"])
        if tag == "span" and "title" in attributes:
            self.tokens.append([self.sections[-1], attributes["title"], ""])
            self.inside = "span"
        elif tag in ("h3", "sup", "sub") and self.sections:
            self.inside = tag

    def handle_endtag(self, tag):
        if tag in ("sup", "sub"):
            self.inside = self.tokens and "span"
        elif tag != "i":
            self.inside = None

    def handle_data(self, data):
        if self.inside == "span":
            self.tokens[-1][2] += data
        elif self.inside == "h3":
            self.headings.append(data.strip())
            self.inside = None  # what follows is the count


def test_html_shows_each_token(shown):
    page = Page(preview_html([shown]))
    assert page.sections == ["given", "trained", "trained"]
    assert page.headings == ["question", "answer", "eos"]
    assert page.tokens[0] == ["given", "token 0: id 48, label -100", "Q"]
    together = "tokens 2 to 4, whole only together: ids 10545 251 109, labels -100 -100 -100"
    assert page.tokens[2] == ["given", together, "·東"]
    assert page.tokens[4:6] == [
        ["given", "token 7: id 1279, label -100", "·<"],
        ["given", "token 8: id 65, label -100", "b"],
    ]
    assert page.tokens[10] == ["trained", "token 13: id 197, label 197", "→"]
    assert page.tokens[-1] == ["trained", "token 17: id 50256, label 50256", "<|endoftext|>"]


def test_html_is_escaped_and_needs_nothing_else(phi2_tokenizer):
    rude = structs.replace(SHORT, parts=[given("<img src=x>", "{instruction}"), SHORT.parts[1]])
    row = {"instruction": "</span><script>alert(2)</script>", "output": '" onmouseover="x'}
    shown = preview_row(
        rude, Row.of(row), phi2_tokenizer, number=1, model='<a href="x">', max_length=9
    )
    shown = replace(shown, template="<script>alert(1)</script>")
    text = preview_html([shown, shown], ids=True)
    page = Page(text)
    assert not {"script", "img", "a", "link"} & {*page.tags}
    assert "http" not in text and "url(" not in text
    assert text.count("<article>") == 2
    assert 'class="over"' in text  # more than 9 tokens
    assert "prefers-color-scheme: dark" in text


def test_html_escapes_the_tokens(shown):
    text = preview_html([shown])
    assert 'label -100"><i>·</i>&lt;</span>' in text
    assert 'label -100">&amp;</span>' in text


def test_html_ids_on_demand(shown):
    assert "<sub>" not in preview_html([shown])
    assert "<sub>10545 251 109</sub>" in preview_html([shown], ids=True)


# Picking rows


def test_pick():
    rows = StoredRows()
    for letter, number in zip("abc", (2, 3, 7), strict=True):
        rows.append({"n": letter}, number)
    assert pick(rows, "f.jsonl") == [(2, {"n": "a"})]
    assert pick(rows, "f.jsonl", 3, 9) == [(3, {"n": "b"}), (7, {"n": "c"})]
    for bad in (0, -1, 4):
        with pytest.raises(FasttuneError, match=f"no row {bad}") as caught:
            pick(rows, "f.jsonl", bad)
        assert caught.value.hint == "give a row from 2 to 7"


# Command


@pytest.fixture
def model(tmp_path, phi2_tokenizer):
    folder = tmp_path / "phi-2"
    phi2_tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "phi"}')
    return str(folder)


def test_command_shows_a_shipped_row(capsys, model):
    assert cli("preview", "-t", "reasoning", "--model", model, "--row", "2").status == 0
    out = capsys.readouterr().out
    assert "template reasoning, row 2, tokenizer of phi-2" in out
    assert "▌ response, trained" in out


def test_command_json_map_and_system(capsys, model, tmp_path, phi2_tokenizer, reasoning_row):
    from fasttune.plugins.discovery import load_plugins

    data = tmp_path / "rows.jsonl"
    moved = {"frage": reasoning_row.pop("instruction"), **reasoning_row}
    data.write_text(json.dumps(moved) + "\n" + json.dumps(moved | {"output": "x"}) + "\n")
    arguments = ["-t", "reasoning", "--model", model, "--data", str(data), "--json"]
    arguments += ["--map", "instruction=frage", "--system", "Be brief.", "--max-length", "30"]
    assert cli("preview", *arguments, "--rows", "2").status == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["row"], second["row"], first["too_long"]) == (1, 2, True)
    assert first["text"].startswith("<|system|>Be brief.\n<|instruction|>How many")
    row = reasoning_row | {"instruction": moved["frage"], "system": "Be brief."}
    encoded = encode(load_plugins().template("reasoning"), row, phi2_tokenizer)
    found = [piece for section in first["sections"] for piece in section["pieces"]]
    assert [token for piece in found for token in piece["ids"]] == encoded.input_ids
    assert [label for piece in found for label in piece["labels"]] == encoded.labels
    assert first["prompt_length"] == encoded.prompt_length


def test_a_row_has_the_number_that_data_gives_it(model, tmp_path, reasoning_row):
    file = tmp_path / "rows.jsonl"
    bad, ended = {**reasoning_row, "output": ""}, {**reasoning_row, "output": "<|endoftext|>"}
    file.write_text("\n".join(map(json.dumps, [bad, {**reasoning_row, "id": 5}, ended])))
    words = ("preview", "-t", "reasoning", "-m", model, "-d", file, "--line")
    assert "template reasoning, row 2," in cli(*words[:-1]).out
    assert "template reasoning, row 2," in cli(*words, 2).out
    assert "row 1, output: is empty" in cli(*words, 1).err
    assert "row 3, output: holds the text <|endoftext|>" in cli(*words, 3).err
    told = cli("templates", "check", "reasoning", "--data", file, "--model", model).out
    told = " ".join(told.split())
    assert "(1 can)" in told and "row 3, output: holds the text" in told


def test_command_writes_html(capsys, model, tmp_path):
    target = tmp_path / "sub" / "page.html"
    assert cli("preview", "-t", "alpaca", "--model", model, "--html", str(target)).status == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert Page(target.read_text(encoding="utf-8")).headings[0] == "preamble"
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("-t", "reasoning", "--row", "100000"), "no row 100000"),
        (("-t", "reasning"), "did you mean 'reasoning'"),
        (("-t", "reasoning", "--json", "--html", "x.html"), "exclude each other"),
        (("-t", "reasoning", "--data", "absent.jsonl"), "no such file"),
    ],
)
def test_command_refuses(capsys, model, arguments, complaint):
    assert cli("preview", *arguments, "--model", model).status == 2
    captured = capsys.readouterr()
    assert complaint in captured.err and not captured.out


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom fasttune.cli import main\n"
        "try: main(['preview', '--help'])\nexcept SystemExit as end: assert not end.code\n"
        "print('heavy:', sorted({'torch', 'transformers', 'tokenizers'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")
    assert "--template" in done.stdout


def test_generation_begins_at_each_answer_of_a_conversation(phi2_tokenizer):
    said = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]
    row = Row.of(said[1], said[:1])
    shown = preview_row(CHATML, row, phi2_tokenizer, number=1, model="m", max_length=99)
    answers = [s.start for s in shown.sections if s.train and s.name == "response"]
    assert shown.beginnings == {*answers} and len(answers) == 2
    assert preview_html([shown]).count("generation begins here") == 2
