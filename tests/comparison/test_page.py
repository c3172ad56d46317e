"""The HTML report of a comparison, read as a parser reads it and as a browser shows it."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from fasttune import Answer, Metric
from fasttune.comparison.charts import LABEL_COLOURS
from fasttune.comparison.page import _number, report_html
from fasttune.comparison.result import Arm, measure_arms, split
from fasttune.formats.row import Row
from fasttune.text.repetition import longest_repeat
from tests.comparison.arms import ARABIC, EVIL, JAPANESE, LONG, LOOP, METRICS, ROWS, answers, logged
from tests.comparison.pages import Page, table


@pytest.fixture(scope="module", autouse=True)
def five_rows_are_enough():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fasttune.comparison.result.ENOUGH", 5)
        yield


@pytest.fixture(scope="module")
def comparison(five_rows_are_enough):
    arms = [
        Arm("alpaca", "alpaca", 1, answers(False, loops=True), logged("response"), {"steps": 1234}),
        Arm("alpaca", "alpaca", 2, answers(False), logged("response"), {"steps": 1234}),
        Arm(LONG, "reasoning", 1, answers(True, sections=True), logged("reasoning", "response")),
        Arm(LONG, "reasoning", 2, answers(True, sections=True), logged("reasoning", "response")),
        Arm("alpaca, untuned", "alpaca", None, answers(False, likely=False)),
    ]
    about = {"model": "a <model>", "rows": "5"}
    return measure_arms(about, arms, METRICS, ["Mind <this>."])


@pytest.fixture(scope="module")
def text(comparison):
    return report_html(comparison)


@pytest.fixture(scope="module")
def page(text):
    return Page(text).root


def test_needs_nothing_else(text, page):
    for node in page.find():
        for name, value in node.attributes.items():
            if name in ("src", "href", "xlink:href", "style", "clip-path", "action"):
                assert not re.search("//|url\\([^#]", value or ""), (node.tag, name, value)
    assert not [node for node in page.find() if node.tag in ("link", "img", "iframe", "image")]
    assert len(list(page.find("script"))) == 1
    assert "@import" not in text and "prefers-color-scheme: dark" in text


def test_everything_is_escaped(text, page):
    assert "<script>window" not in text and "<img" not in text and "Mind &lt;this&gt;." in text
    for at in range(5):
        card = list(list(page.find("details", "row"))[3].find("article"))[at]
        assert EVIL in card.text


def test_names_are_escaped_too():
    text = f"before {EVIL} after"
    sections = {EVIL: text, f"other {EVIL}": text}
    answer = Answer({EVIL: EVIL, "instruction": EVIL}, text, sections, EVIL, 3)
    metrics = [Metric(name, EVIL, lambda a: a.tokens, "lower") for name in ("tokens", "exact")]
    arms = [
        Arm(f"{name} {EVIL}", name, seed, [answer] * 9, logged(EVIL), {EVIL: EVIL})
        for name in ("a", "b")
        for seed in (1, 2, None)
    ]
    result = measure_arms({EVIL: EVIL}, arms, metrics, [EVIL])
    result = replace(result, groups={EVIL: split(result, EVIL)})
    page = Page(report_html(result)).root
    assert {"img", "image"}.isdisjoint(node.tag for node in page.find())
    assert len(list(page.find("script"))) == 1
    assert not [n for n in page.find() if any(name.startswith("on") for name in n.attributes)]
    assert EVIL in next(page.find("h1")).text
    assert all("onerror=" in node.text for node in list(page.find("svg", "chart"))[-2:])


def test_control_characters_are_shown():
    bell = "\x1b]0;title\x07 \x9b2J"
    seen = "⟨U+001B⟩]0;title⟨U+0007⟩ ⟨U+009B⟩2J"
    sections = {"reasoning": bell, "response": bell}
    answer = Answer({"instruction": bell, "output": bell}, bell + bell, sections, "eos", 3)
    arms = [Arm(label, label, 1, [answer], logged("a"), {}) for label in (f"a {bell}", "b")]
    text = report_html(measure_arms({"rows": bell}, arms, METRICS, [bell]))
    assert not set(text) & {"\x1b", "\x07", "\x9b"}
    page = Page(text).root
    assert [next(page.find(css=c)).text.count(seen) for c in ("about", "notes", "card")] == [
        1,
        1,
        3,
    ]
    assert seen in next(page.find("figure")).text + str([n.text for n in page.find("text")])


def test_a_conversation_shows_its_earlier_turns_and_each_section_its_reference():
    row = Row(
        [{"instruction": "Hi.", "output": "Hello."}, {"instruction": "Who?", "output": "Me."}],
        columns={"sources": "KB-1"},
    )
    targets = {"response": "output", "sources": "sources"}
    answer = Answer(row, "x", {"response": "x", "sources": ""}, "eos", 1, targets=targets)
    page = Page(report_html(measure_arms({}, [Arm("a", "a", 1, [answer])], METRICS, []))).root
    asked = next(page.find(css="asked"))
    shown = [
        (h.text, d.text.split()) for h, d in zip(asked.find("h3"), asked.find("dl"), strict=True)
    ]
    assert shown == [
        ("Turn 1", ["instructionHi.", "outputHello."]),
        ("Question", ["instructionWho?"]),
        ("Reference", ["outputMe.", "sourcesKB-1"]),
    ]


def test_the_same_comparison_gives_the_same_page(comparison, text):
    assert report_html(comparison) == text


def test_title_notes_and_verdict(comparison, page):
    [title] = page.find("h1")
    assert title.text == f"Prompt formats compared: alpaca, {LONG}"
    assert "a <model>" in next(page.find("dl", "about")).text
    assert "Mind <this>." in next(page.find(css="notes")).text
    [section] = page.find(css="verdict")
    assert [found.text for found in section.find("p")] == comparison.sentences()
    assert section.text.index("is better than alpaca on") < section.text.index("Against the")


def test_headings_are_in_order(page):
    levels = [int(n.tag[1]) for n in page.find() if re.fullmatch("h[1-6]", n.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in zip(levels, levels[1:], strict=False))


def test_ids_are_unique_and_what_refers_to_them_finds_them(text, page):
    ids = [node.attributes["id"] for node in page.find() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:href=\"|url\()#([\w-]+)", text)) <= set(ids)


def test_figures_are_those_of_the_comparison(comparison, page):
    found = table(page, "figures")
    assert len(found) == len(METRICS)
    for metric in METRICS:
        [cells] = [row for name, row in found.items() if name.split()[0] == metric.name]
        for label, cell in zip(comparison.labels, cells, strict=True):
            value = comparison.figures[label][metric.name].interval
            if math.isnan(value.value):
                assert cell == "–"
            else:
                bounds = "" if value.is_point else f"{_number(value.low)} to {_number(value.high)}"
                assert cell.replace(" ★", "") == _number(value.value) + bounds
    names = " ".join(found)
    assert "stops ↑" in names and "bits_per_byte ↓" in names and "length mean" in names
    seeds = table(page, "figures of every seed")["stops ↑"]
    assert seeds == ["0.6", "1", "1", "1"]


def test_best_is_marked_only_where_a_difference_says_so(comparison, page):
    starred = {name.split()[0] for name, row in table(page, "figures").items() if "★" in row[1]}
    found = comparison.between("alpaca", LONG)
    assert starred == {d.metric for d in found if d.better == LONG} >= {"bits_per_byte"}
    assert not any("★" in row[0] + row[2] for row in table(page, "figures").values())
    same = [Arm(name, name, 1, answers(True)) for name in ("a", "b")]
    assert "★</span>" not in report_html(measure_arms({}, same, METRICS, []))


def test_differences(comparison, page):
    found = table(page, f"alpaca − {LONG}")
    assert found["bits_per_byte ↓"][0].startswith("4.5") and found["bits_per_byte ↓"][2] == LONG
    assert found["stops ↑"][2] == "not significant" and found["length"][2] == "not judged"
    base = table(page, "alpaca − alpaca, untuned")["bits_per_byte ↓"]
    assert base == ["–", "", "not measured on both sides"]
    opened = ["open" in pair.attributes for pair in page.find("details", "pair")]
    assert opened == [True, False]  # formats against each other; a format against its base


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.12345, "0.123"), (1234.5, "1,234"), (-2.0, "−2"), (math.nan, "–"), (0.0, "0")],
)
def test_numbers(value, shown):
    assert _number(value) == shown


def test_figures_of_the_rows_with_each_value_of_a_column(comparison):
    page = Page(report_html(replace(comparison, groups={"task": split(comparison, "task")}))).root
    assert "By task" in [heading.text for heading in page.find("h2")]
    assert "capital, 1 row" in [heading.text for heading in page.find("h3")]
    assert list(page.find(**{"aria-label": "figures, task capital"}))


def test_charts(comparison, page):
    figures = {next(f.find("h3")).text: f for f in page.find("figure")}
    assert list(figures) == [
        "Loss of the section response",
        "Loss of the section reasoning",
        "Lengths of the answers",
        "How the answers ended",
    ]
    losses, reasoning, lengths, stops = (next(f.find("svg", "chart")) for f in figures.values())
    drawn = str([node.attributes for node in losses.find("path")])
    assert LABEL_COLOURS[0] in drawn and LABEL_COLOURS[1] in drawn
    drawn = str([node.attributes for node in reasoning.find("path")])
    assert LABEL_COLOURS[0] not in drawn and LABEL_COLOURS[1] in drawn
    assert "alpaca: 8 eos, 1 length, 1 loop" in stops.attributes["aria-label"]
    assert "alpaca: 8 eos, 1 length, 1 loop" in stops.text
    assert "median" in lengths.text
    assert "currentColor" in str([n.attributes for n in losses.find("text")])
    said = next(page.find(css="charts"))
    assert "Do not compare losses per token between formats" in page.text
    assert "<rdf" not in said.text
    assert table(page, "trainings") == {"alpaca seed 1": ["1,234"], "alpaca seed 2": ["1,234"]}


def test_every_answer_of_every_row_is_there(comparison, page):
    rows = list(page.find("details", "row"))
    assert [row.attributes["id"] for row in rows] == [f"row-{n}" for n in range(1, 6)]
    for place, row in enumerate(rows):
        asked = next(row.find(css="asked")).text
        for written in ROWS[place].values():
            assert written in asked
        assert list(row.find("a", href=f"#row-{place + 1}"))
        cards = list(row.find("article"))
        assert len(cards) == len(comparison.arms)
        for arm, card in zip(comparison.arms, cards, strict=True):
            answer = arm.answers[place]
            assert "".join(found.text for found in card.find(css="text")) == answer.text
            heading = next(card.find("h3")).text
            assert heading == (f"{arm.label} seed {arm.seed}" if arm.tuned else arm.label)
            facts = next(card.find(css="facts")).text
            assert facts.startswith(answer.ending) and f"{answer.tokens} token" in facts
            assert ("bits per byte" in facts) == (answer.likelihood is not None)
            names = [found.text for found in card.find("h4")]
            assert names == (list(answer.sections) if len(answer.sections) > 1 else [])
    first = next(rows[0].find("article")).text
    assert "not exact" in first and "5 bits per byte" in first


def test_summaries_tell_how_the_answers_ended(page):
    summary = next(list(page.find("details", "row"))[2].find("summary"))
    shown = [
        (m.attributes["data-arms"], " ".join(m.text.split())) for m in summary.find(css="marks")
    ]
    assert shown[:2] == [
        ("0 1", "alpaca loop not exact eos not exact"),
        ("2 3", f"{LONG} eos exact eos exact"),
    ]
    badges = [badge.attributes["class"] for badge in summary.find(css="badge")][:4]
    assert badges == ["badge loop", "badge no", "badge eos", "badge no"]
    long = next(list(page.find("details", "row"))[3].find(css="beginning")).text
    assert len(long) == 101 and long.endswith("…")


def test_repetition_is_marked_where_it_is(page):
    card = next(list(page.find("details", "row"))[2].find("article"))
    [mark] = card.find("mark")
    found = longest_repeat(LOOP)
    assert mark.text == LOOP[found.start : found.end] == "on and on and on and on and on"
    assert mark.attributes["title"] == "9 words: a phrase of 2, repeated"


def test_repetition_across_sections_and_what_a_section_is_called():
    text = "a b a b\n<|response|>a b"
    answer = Answer(ROWS[0], text, {"reasoning": "a b a b", "response": "a b"}, "eos", 9)
    looped = Answer(ROWS[0], "go on go on go <s>s", {"x": "go on go on", "y": "s"}, "eos", 9)
    lost = Answer(ROWS[0], "shouting", {"x": "SHOUTING", "y": ""}, "eos", 9)
    long = Answer(ROWS[0], "no no no no no no", {"x": "no no no", "y": "no no no"}, "eos", 9)
    arms = [Arm(str(n), "t", n, [a]) for n, a in enumerate((answer, looped, lost, long))]
    cards = list(Page(report_html(measure_arms({}, arms, METRICS, []))).root.find("article"))
    assert not list(cards[0].find("mark"))  # four words
    texts = [[node.text for node in card.find(css="text")] for card in cards]
    assert texts[0] == ["a b a b", "\n<|response|>", "a b"]
    assert texts[1] == ["go on go on", " go <s>", "s"]  # the s at the end, not one in a tag
    assert texts[2] == ["shouting", "SHOUTING"]  # not in the text as it stands: shown after it
    assert [node.text for node in cards[3].find("mark")] == ["no no no", " ", "no no no"]


def test_languages_are_said(page):
    rows = list(page.find("details", "row"))
    for place, language, written in ((1, "ja", JAPANESE), (2, "ar", ARABIC)):
        card = list(rows[place].find("article"))[2]
        spoken = [node for node in card.find(css="text") if node.attributes.get("lang") == language]
        assert [node.text for node in spoken] == [written]
        assert language in [badge.text for badge in card.find(css="badge")]
    model_text = [n for n in page.find(css="text") if "tag" not in n.attributes["class"]]
    assert all(node.attributes.get("dir") == "auto" for node in model_text)


def test_one_seed_and_no_base_leave_their_controls_out():
    arms = [Arm(name, name, 1, answers(True)) for name in ("a", "b")]
    page = Page(report_html(measure_arms({}, arms, METRICS, []))).root
    ids = {node.attributes.get("id") for node in page.find()}
    assert {"search", "differ", "loops"} <= ids and not {"seed", "base"} & ids


# In a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

PROBE = """
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
const seen = {};
const measure = (name, frame) => {
  const root = frame.contentDocument.documentElement;
  seen[name] = {scroll: root.scrollWidth, width: root.clientWidth,
    paper: frame.contentWindow.getComputedStyle(frame.contentDocument.body).backgroundColor};
};
onload = async () => {
  try {
    const [wide, phone] = document.querySelectorAll("iframe");
    const page = wide.contentDocument;
    const at = id => page.getElementById(id);
    const rows = () => [...page.querySelectorAll(".row")].filter(r => !r.hidden).map(r => r.id);
    const cards = () => [...page.querySelectorAll("#row-1 .card")].filter(c => !c.hidden)
      .map(c => c.querySelector("h3").textContent);
    const set = async (id, value) => {
      if (typeof value === "boolean") at(id).checked = value; else at(id).value = value;
      at(id).dispatchEvent(new Event(id === "search" ? "input" : "change", {bubbles: true}));
    };
    seen.controls = at("search").offsetWidth > 0;
    seen.opened = [...page.querySelectorAll(".row[open]")].map(row => row.id);
    seen.seed1 = cards();
    seen.count = at("count").textContent;
    await set("loops", true); seen.loops = rows(); seen.loopCount = at("count").textContent;
    const options = [...at("seed").options];
    await set("seed", options[1].value); seen.seed2 = cards(); seen.loops2 = rows();
    await set("seed", options[2].value); seen.all = cards();
    await set("base", false); seen.withoutBase = cards();
    await set("loops", false);
    await set("differ", true); seen.differ = rows(); await set("differ", false);
    await set("search", "عاصمة"); seen.search = rows();
    wide.contentWindow.location.hash = "#row-1"; await wait(300);
    seen.later = at("row-1").open && !at("row-1").hidden;
    await set("search", "");
    for (const frame of [wide, phone]) {
      for (const found of frame.contentDocument.querySelectorAll("details")) found.open = true;
      measure(frame === wide ? "wide" : "phone", frame);
    }
    seen.errors = [...wide.contentWindow.errors, ...phone.contentWindow.errors];
    seen.evil = String(wide.contentWindow.evil);
  } catch (error) { seen.failed = String(error); }
  document.body.dataset.seen = JSON.stringify(seen);
};
"""


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request, text, tmp_path_factory):
    """What the page does at a width of 1280 and of 360, in frames: a window is never so narrow."""
    folder = tmp_path_factory.mktemp("page")
    caught = "<script>var errors = []; onerror = (message) => { errors.push(message); };</script>"
    (folder / "page.html").write_text(text.replace("<head>", f"<head>{caught}"), encoding="utf-8")
    frames = "".join(
        f'<iframe src="page.html{at}" style="width:{width}px;height:800px;border:0"></iframe>'
        for width, at in ((1280, "#row-3"), (360, ""))
    )
    wrapper = folder / "wrapper.html"
    wrapper.write_text(f"<body>{frames}<script>{PROBE}</script></body>", encoding="utf-8")
    scheme = {"dark": 0, "light": 1}[request.param]
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"),
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={scheme}",
            *("--virtual-time-budget=5000", "--dump-dom", wrapper.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    [body] = Page(re.sub(r"<script>.*?</script>", "", done.stdout, flags=re.S)).root.find("body")
    found = json.loads(body.attributes["data-seen"] or "")
    assert "failed" not in found, found
    return request.param, found


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_in_a_browser(seen):
    scheme, found = seen
    assert found["errors"] == [] and found["evil"] == "undefined"
    for name, width in (("wide", 1280), ("phone", 360)):
        assert found[name]["scroll"] <= found[name]["width"] <= width
        assert (found[name]["paper"] == "rgb(255, 255, 255)") == (scheme == "light")
    assert found["controls"] and found["count"] == "5 rows"
    assert found["opened"] == ["row-3"] and found["later"]
    assert found["seed1"] == ["alpaca seed 1", f"{LONG} seed 1", "alpaca, untuned"]
    assert found["seed2"] == ["alpaca seed 2", f"{LONG} seed 2", "alpaca, untuned"]
    assert len(found["all"]) == 5 and len(found["withoutBase"]) == 4
    assert (found["loops"], found["loopCount"]) == (["row-3"], "1 of 5 rows")
    assert found["loops2"] == []  # the seed 2 does not loop
    assert found["differ"] == ["row-1", "row-2", "row-3", "row-5"]
    assert found["search"] == ["row-3"]


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_printed_without_javascript(text, tmp_path):
    """Every answer is in the PDF, though its row is closed on the screen, and no control is."""
    page, pdf = tmp_path / "page.html", tmp_path / "page.pdf"
    page.write_text(re.sub(r"<script>.*?</script>", "", text, flags=re.S), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}")
    command = [str(CHROMIUM), *options, f"--print-to-pdf={pdf}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert pdf.read_bytes().startswith(b"%PDF")
    if reader := shutil.which("pdftotext"):
        done = subprocess.run([reader, pdf, "-"], capture_output=True, text=True, check=True)
        printed = " ".join(done.stdout.split())
        assert "thinking about it" in printed and "untuned base" in printed
        assert "only loops" not in printed and "Search" not in printed
