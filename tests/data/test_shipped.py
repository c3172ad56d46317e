"""The data set that ships with the package: true, well formed and cleanly split.

The checks of truth read the finished rows and work from tables of their own, so that
a mistake in the generator cannot hide itself.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools" / "dataset"
SHIPPED = ROOT / "src" / "fasttune" / "data"
SPLITS = ("train", "heldout")
FIELDS = ("instruction", "input", "reasoning", "output")
LANGUAGES = {"en", "ja", "zh", "ko", "es", "fr", "de"}

Row = dict[str, str]


def read(split: str) -> list[Row]:
    text = (SHIPPED / f"facts-{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


ROWS = {split: read(split) for split in SPLITS}
ALL_ROWS = [row for split in SPLITS for row in ROWS[split]]


# Reading a row back: numbers, words and lists

WEEKDAYS = {
    "en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "es": "lunes martes miércoles jueves viernes sábado domingo",
    "fr": "lundi mardi mercredi jeudi vendredi samedi dimanche",
    "de": "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
    "ja": "月曜日 火曜日 水曜日 木曜日 金曜日 土曜日 日曜日",
    "zh": "星期一 星期二 星期三 星期四 星期五 星期六 星期日",
    "ko": "월요일 화요일 수요일 목요일 금요일 토요일 일요일",
}
MONTHS = (
    "January February March April May June July August September October November December "
    "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre "
    "janvier février mars avril mai juin juillet août septembre octobre novembre décembre "
    "Januar Februar März April Mai Juni Juli August September Oktober November Dezember"
)
DATES = {
    "en": r"(?P<month>[A-Z]\w+) (?P<day>\d+)",
    "es": r"(?P<day>\d+) de (?P<month>\w+)",
    "fr": r"(?P<day>\d+) (?P<month>(?!jours)\w+)",
    "de": r"(?P<day>\d+)\. (?P<month>\w+)",
    "ja": r"(?P<month>\d+)月(?P<day>\d+)日",
    "zh": r"(?P<month>\d+)月(?P<day>\d+)日",
    "ko": r"(?P<month>\d+)월 (?P<day>\d+)일",
}
# A unit in days, months or seconds; what begins with another one stands before it.
UNITS = {
    "en": "weeks=7 days=1 years=12 months=1 minutes=60 seconds=1",
    "es": "semanas=7 días=1 años=12 meses=1 minutos=60 segundos=1",
    "fr": "semaines=7 jours=1 ans=12 mois=1 minutes=60 secondes=1",
    "de": "Wochen=7 Tage=1 Jahre=12 Monate=1 Minuten=60 Sekunden=1",
    "ja": "週間=7 日=1 年=12 か月=1 分=60 秒=1",
    "zh": "周=7 天=1 年=12 个月=1 分钟=60 秒钟=1",
    "ko": "주=7 일=1 년=12 개월=1 분=60 초=1",
}
COLOURS = {
    "en": "red blue green yellow black white",
    "es": "rojo azul verde amarillo negro blanco",
    "fr": "rouge bleu vert jaune noir blanc",
    "de": "rot blau grün gelb schwarz weiß",
    "ja": "赤 青 緑 黄 黒 白",
    "zh": "红色 蓝色 绿色 黄色 黑色 白色",
    "ko": "빨강 파랑 초록 노랑 검정 하양",
}
YES = {"en": "Yes", "ja": "はい", "zh": "是", "ko": "예", "es": "Sí", "fr": "Oui", "de": "Ja"}
NO = {"en": "No", "ja": "いいえ", "zh": "否", "ko": "아니요", "es": "No", "fr": "Non", "de": "Nein"}
QUOTED = r"[\"「“«„]\s?([^\"」”»“]+?)\s?[\"」”»“]"
# ISO 4217, written down apart from CLDR.
TENDER = (
    "AM:AMD AR:ARS BR:BRL CA:CAD CH:CHF CL:CLP CO:COP CR:CRC CZ:CZK DK:DKK EG:EGP HU:HUF ID:IDR "
    "IN:INR IS:ISK JO:JOD JP:JPY KE:KES KH:KHR KR:KRW KW:KWD MA:MAD MX:MXN MY:MYR NG:NGN NO:NOK "
    "NP:NPR NZ:NZD OM:OMR PE:PEN PL:PLN QA:QAR RO:RON SA:SAR SE:SEK TH:THB TR:TRY UA:UAH VN:VND"
)
# Word by word: what each part of a number word is worth.
PARTS = {
    "en": "twenty=20 thirty=30 forty=40 fifty=50 sixty=60 one=1 two=2 three=3 four=4 five=5 six=6 "
    "seven=7 eight=8 nine=9",
    "es": "veinti=20 treinta=30 cuarenta=40 cincuenta=50 sesenta=60 uno=1 dos=2 dós=2 tres=3 "
    "trés=3 cuatro=4 cinco=5 seis=6 séis=6 siete=7 ocho=8 nueve=9",
    "fr": "vingt=20 trente=30 quarante=40 cinquante=50 soixante=60 un=1 deux=2 trois=3 quatre=4 "
    "cinq=5 six=6 sept=7 huit=8 neuf=9",
    "de": "zwanzig=20 dreißig=30 vierzig=40 fünfzig=50 sechzig=60 ein=1 zwei=2 drei=3 vier=4 "
    "fünf=5 sechs=6 sieben=7 acht=8 neun=9",
}
ASIAN_DIGITS = {"ja": "一二三四五六七八九", "zh": "一二三四五六七八九", "ko": "일이삼사오육칠팔구"}


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def listed(text: str) -> list[str]:
    return re.split(r"、|, |\n", text)


def named(line: str) -> list[str]:
    """The name and the value of a line such as "Item: Lamp"."""
    return re.split(r" ?[:：] ?", line)


def word_value(word: str, language: str) -> int:
    if language in ASIAN_DIGITS:
        ten, one = re.split("[十십]", word)
        digits = ASIAN_DIGITS[language]
        return 10 * (digits.index(ten) + 1) + digits.index(one) + 1
    worth = dict(pair.split("=") for pair in PARTS[language].split())
    longest_first = sorted(worth, key=len, reverse=True)
    parts = re.findall("|".join(longest_first), word)
    assert len(parts) == 2, word
    return sum(int(worth[part]) for part in parts)


# Truth: for each task what the question has for an answer


def chained_sum(row: Row) -> str:
    text = re.sub("[、,]", "", row["instruction"]).replace(" ", "")
    start, changes = re.search(r"(\d+)\D*?((?:[+-]\d+)+)", text).groups()  # type: ignore[union-attr]
    return str(int(start) + sum(int(change) for change in re.findall(r"[+-]\d+", changes)))


def letters(text: str) -> list[str]:
    """Capital letters that stand alone; not the "¿A" of Spanish."""
    return re.findall(r"(?<![A-Za-z¿])[A-Z](?![A-Za-zÀ-ÿ])", text)


def count_letters(row: Row) -> str:
    (letter,) = letters(row["instruction"])
    return str(row["input"].count(letter))


def date_after(row: Row) -> str:
    """The day is the number that has a month beside it, in the order of the language."""
    found = re.search(DATES[row["language"]], row["instruction"])
    assert found is not None and (found["month"] in MONTHS.split() or found["month"].isdigit())
    (days,) = numbers(row["instruction"].replace(found[0], ""))
    end = date(2025, 1, int(found["day"])) + timedelta(days)
    assert end.month == 1
    return found[0][: found.start("day") - found.start()] + re.sub(
        r"^\d+", str(end.day), found[0][found.start("day") - found.start() :]
    )


def order_teams(row: Row) -> str:
    teams = [named(team) for team in listed(row["input"])]
    teams.sort(key=lambda team: team[1])  # the alphabet; sorting again keeps it within a score
    teams.sort(key=lambda team: int(team[0]), reverse=True)
    return ("、" if "、" in row["input"] else ", ").join(team for _, team in teams)


def follow_route(row: Row) -> str:
    onward = dict(arrow.split(" → ") for arrow in listed(row["input"]))
    (stop,) = letters(row["instruction"])
    (count,) = numbers(row["instruction"])
    for _ in range(count):
        stop = onward[stop]
    return str(stop)


def shop(row: Row) -> str:
    bought = [numbers(line) for line in row["input"].split("\n")]
    total = sum(count * price for count, price in bought)
    money = {"en": "${}", "ja": "{}ユーロ", "zh": "{}元", "ko": "{}유로"}
    return money.get(row["language"], "{} €").format(total)


def convert_units(row: Row) -> str:
    worth = dict(pair.split("=") for pair in UNITS[row["language"]].split())
    longest_first = "|".join(sorted(worth, key=len, reverse=True))
    found = re.findall(rf"(\d+) ?({longest_first})", row["instruction"])
    (_, large), (_, small) = found
    assert {large, small} in [set(list(worth)[i : i + 2]) for i in (0, 2, 4)]
    total = sum(int(number) * int(worth[unit]) for number, unit in found)
    return f"{total}{'' if row['language'] in ('ja', 'zh', 'ko') else ' '}{small}"


def initials(row: Row) -> str:
    return re.sub(r"\w+", lambda word: word[0][0], row["input"])


def read_form(row: Row) -> str:
    return by_name(row)


def largest(row: Row) -> str:
    return str(max(map(int, listed(row["input"]))))


def currency(row: Row) -> str:
    return by_name(row)


def by_name(row: Row) -> str:
    (name,) = re.findall(QUOTED, row["instruction"])
    return dict(named(line) for line in row["input"].split("\n"))[name]


def number_words(row: Row) -> str:
    language = row["language"]
    if language in ASIAN_DIGITS:
        digits = f"[{ASIAN_DIGITS[language]}]"
        said_words = re.findall(f"{digits}[十십]{digits}", row["instruction"])
    else:
        said_words = listed(re.split(" ?: ", row["instruction"])[1])
    values = [str(word_value(word, language)) for word in said_words]
    return ("、" if language in ("ja", "zh") else ", ").join(values)


def apply_rule(row: Row) -> str:
    *listed_ones, asked = rule_names(row)
    assert len(set(listed_ones)) == len(listed_ones)
    return (YES if asked in listed_ones else NO)[row["language"]]


def rule_names(row: Row) -> list[str]:
    """The days, colours or groups of a rule, and last the one that is asked for."""
    language = row["language"]
    edge = "" if language in ASIAN_DIGITS else r"\b"
    for names in (WEEKDAYS, COLOURS):
        pattern = names[language].replace(" ", "|")
        if found := re.findall(f"{edge}(?:{pattern}){edge}", row["instruction"]):
            return found
    return letters(row["instruction"])


ANSWERS: dict[str, Callable[[Row], str]] = {
    function.__name__: function
    for function in (
        chained_sum,
        count_letters,
        date_after,
        order_teams,
        follow_route,
        shop,
        convert_units,
        initials,
        read_form,
        largest,
        currency,
        number_words,
        apply_rule,
    )
}


@pytest.mark.parametrize("task", ANSWERS)
def test_answers(task: str) -> None:
    rows = [row for row in ALL_ROWS if row["task"] == task]
    assert len(rows) >= 100
    for row in rows:
        assert row["output"] == ANSWERS[task](row), row


def test_no_other_tasks() -> None:
    assert {row["task"] for row in ALL_ROWS} == set(ANSWERS)


def test_currencies_are_those_of_the_countries() -> None:
    babel = pytest.importorskip("babel")
    tender = dict(pair.split(":") for pair in TENDER.split())
    for row in ALL_ROWS:
        if row["task"] == "currency":
            territories = babel.Locale.parse(row["language"]).territories
            names = {territories[country]: code for country, code in tender.items()}
            for line in row["input"].split("\n"):
                country, code = named(line)
                assert names[country] == code


def test_the_reasoning_ends_on_the_answer_and_every_equation_holds() -> None:
    side = r"\d+(?: [×+-] \d+)*"
    seen = 0
    for row in ALL_ROWS:
        reasoning = row["reasoning"]
        for left, sign, right in re.findall(rf"({side}) ([=<>]) ({side})", reasoning):
            a, b = (eval(text.replace("×", "*")) for text in (left, right))  # digits and signs only
            assert {"=": a == b, "<": a < b, ">": a > b}[sign], reasoning
            seen += 1
        steps = re.split(r"\. |。|\.$", reasoning.removesuffix(".").removesuffix("。"))
        if row["task"] in ("order_teams", "initials"):
            assert [named(step)[1] for step in steps] == listed(row["output"])
        elif row["task"] == "number_words":
            assert [step.split(" = ")[1] for step in steps] == listed(row["output"])
        elif row["task"] == "apply_rule":
            *names, asked = rule_names(row)
            verdicts = {YES[row["language"]]: True, NO[row["language"]]: False}
            read = [(named(step)[0], verdicts[named(step)[1]]) for step in steps]
            assert all(holds == (name == asked) for name, holds in read)
            assert read[-1][1] or [name for name, _ in read] == names
        else:
            result = re.search(r"\d+$", steps[-1])
            found = result and int(result[0]) in numbers(row["output"])
            assert steps[-1].endswith(row["output"]) or found, row
    assert seen > 1000


# The generator


@pytest.fixture
def make_dataset(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("babel")
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("make_dataset")


def test_committed_files_are_what_the_script_makes(make_dataset: ModuleType) -> None:
    for name, data in make_dataset.make_files().items():
        assert (SHIPPED / name).read_bytes() == data


@pytest.mark.parametrize("seed", ["1", "2"])
def test_hash_order_does_not_matter(seed: str) -> None:
    pytest.importorskip("babel")
    result = subprocess.run(
        [sys.executable, str(TOOLS / "make_dataset.py"), "--check"],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
    assert f"facts-train.jsonl: {len(ROWS['train'])} rows" in result.stdout


@pytest.mark.slow
def test_check_notices_a_changed_file(
    make_dataset: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(make_dataset, "SHIPPED", tmp_path)
    assert make_dataset.main(["--check"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert make_dataset.main([]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "facts-train.jsonl",
        "facts-heldout.jsonl",
    }
    assert make_dataset.main(["--check"]) == 0
    with (tmp_path / "facts-heldout.jsonl").open("ab") as file:
        file.write(b"\n")
    capsys.readouterr()
    assert make_dataset.main(["--check"]) == 1
    assert "facts-heldout.jsonl: out of date" in capsys.readouterr().err


# Train and held-out


def fact(row: Row) -> object:
    """What a question asks, whatever its language."""
    asked = f"{row['instruction']}\n{row['input']}"
    task = row["task"]
    if task == "date_after":
        found = re.search(DATES[row["language"]], row["instruction"])
        assert found is not None
        month = found["month"]
        place = int(month) if month.isdigit() else MONTHS.split().index(month) % 12 + 1
        days = numbers(row["instruction"].replace(found[0], ""))
        return place, int(found["day"]), days
    if task in ("number_words", "currency"):
        return row["output"], re.findall("[A-Z]{3}", row["input"])
    if task in ("order_teams", "follow_route"):
        return re.findall(r"[A-Z]|\d+", row["input"]), letters(row["instruction"])
    if task == "convert_units":
        worth = dict(pair.split("=") for pair in UNITS[row["language"]].split())
        large = [w for unit, w in worth.items() if w != "1" and unit in row["instruction"]]
        return large[0], numbers(asked)
    if task == "apply_rule":
        return rule_places(row)
    if task == "count_letters":
        return letters(asked)
    if task in ("initials", "read_form"):
        return row["language"], asked
    return re.findall(r"[+-]? ?\d+", asked)


def rule_places(row: Row) -> list[int]:
    names = (WEEKDAYS[row["language"]].split(), COLOURS[row["language"]].split(), [*"ABCDEF"])
    return [of.index(name) for name in rule_names(row) for of in names if name in of]


def test_no_fact_is_in_both_parts() -> None:
    for task in ANSWERS:
        train, heldout = (
            {repr(fact(row)) for row in ROWS[split] if row["task"] == task} for split in SPLITS
        )
        if task == "shop":  # the same counts and prices, of other things
            continue
        assert train and heldout and not train & heldout, task


def test_no_question_is_in_both_parts_or_twice() -> None:
    questions = Counter((row["instruction"], row["input"]) for row in ALL_ROWS)
    assert max(questions.values()) == 1


def test_the_last_question_of_the_demo_is_none_of_the_rows() -> None:
    (asked,) = re.findall(r'generate last "(.+)"', (ROOT / "Makefile").read_text())
    known = {row["instruction"] for row in ALL_ROWS}
    assert asked not in known and re.sub(r"\d+", "", asked) in {
        re.sub(r"\d+", "", question) for question in known
    }


def test_number_words_are_held_out_by_number() -> None:
    train, heldout = (
        {n for row in ROWS[split] if row["task"] == "number_words" for n in numbers(row["output"])}
        for split in SPLITS
    )
    assert not train & heldout


def size(row: Row) -> int:
    """How long a question is, or how large."""
    if row["task"] == "apply_rule":
        return len(rule_names(row)) - 1
    if row["task"] == "date_after":
        found = re.search(DATES[row["language"]], row["instruction"])
        assert found is not None
        return numbers(row["instruction"].replace(found[0], ""))[0]
    if row["task"] == "convert_units":
        return numbers(row["instruction"])[0]
    if row["task"] == "chained_sum":
        return len(numbers(row["instruction"]))
    if row["task"] == "number_words":
        return len(listed(row["output"]))
    return len(listed(row["input"]))


def test_harder_rows_exceed_all_in_training() -> None:
    for task in ANSWERS:
        sizes: dict[tuple[str, str], list[int]] = {}
        for split in SPLITS:
            for row in ROWS[split]:
                if row["task"] == task:
                    sizes.setdefault((split, row["harder"]), []).append(size(row))
        assert sizes.keys() == {("train", "no"), ("heldout", "no"), ("heldout", "yes")}
        assert min(sizes["heldout", "yes"]) > max(sizes["train", "no"] + sizes["heldout", "no"])


# Form


def test_keys_and_order() -> None:
    for row in ALL_ROWS:
        assert list(row) == ["language", "task", "kind", "harder", *FIELDS]
        assert all(row[key] for key in row if key != "input")
        assert row["kind"] in ("steps", "look") and row["harder"] in ("yes", "no")


def test_size_and_balance() -> None:
    assert len(ROWS["train"]) >= 1800
    assert len(ROWS["heldout"]) >= 300
    for split in SPLITS:
        assert {row["language"] for row in ROWS[split]} == LANGUAGES
        for task in ANSWERS:
            counts = Counter(row["language"] for row in ROWS[split] if row["task"] == task)
            assert len(counts) == len(LANGUAGES)
            assert len(set(counts.values())) == 1
    assert len({(row["task"], row["kind"]) for row in ALL_ROWS}) == len(ANSWERS)
    assert sum(bool(row["input"]) for row in ALL_ROWS) >= len(ALL_ROWS) / 3


def test_every_task_is_put_in_several_ways() -> None:
    for task in ANSWERS:
        for language in LANGUAGES:
            ways = {
                re.sub(r"[+-]? ?\d+|(?<=[ ：:])\S+$|" + QUOTED, "", row["instruction"])
                for row in ROWS["train"]
                if (row["task"], row["language"]) == (task, language)
            }
            assert len(ways) >= 2, (task, language)


def test_rules_hold_about_as_often_as_not() -> None:
    outputs = Counter(
        row["output"] in YES.values() for row in ALL_ROWS if row["task"] == "apply_rule"
    )
    assert 0.4 < outputs[True] / sum(outputs.values()) < 0.6


def test_no_stray_characters() -> None:
    for row in ALL_ROWS:
        for field in FIELDS:
            text = row[field]
            assert "<|" not in text
            assert not re.search(r"[{}\t\r\u00a0\u202f]|  |None|duration-", text)
            assert all(line and line == line.strip() for line in text.split("\n") if text)
            assert "\n" not in text or field == "input"


def test_lengths() -> None:
    for row in ALL_ROWS:
        length = sum(len(row[field]) for field in FIELDS)
        assert 20 <= length <= 260, row


KANA, HANGUL, HAN = r"[\u3040-\u30ff]", r"[\uac00-\ud7a3]", r"[\u4e00-\u9fff]"


def test_scripts() -> None:
    for row in ALL_ROWS:
        language = row["language"]
        prose = row["instruction"]
        text = prose + row["reasoning"] + row["input"] + row["output"]
        assert bool(re.search(KANA, prose)) == (language == "ja")
        assert bool(re.search(HANGUL, prose)) == (language == "ko")
        if language == "zh":
            assert re.search(HAN, prose)
        elif language != "ja":
            assert not re.search(f"{HAN}|{KANA}", text)
        if language not in ("ja", "zh", "ko"):
            assert re.search("[a-z]", prose)
            assert not re.search(r"[\u3000-\uffef]", text)
        if language == "zh":
            assert not re.search(f"{KANA}|{HANGUL}", text)


def test_punctuation_of_each_language() -> None:
    for row in ALL_ROWS:
        text = " ".join(row[field] for field in FIELDS)
        if row["language"] == "es":
            assert text.count("¿") == text.count("?")
        if row["language"] == "fr":
            assert not re.search(r"[^ ][?:;!»]|«[^ ]", text)
            assert not re.search(r"\b(?:de|le|la|que) [aeiouéèêâîôûy]", text)
        if row["language"] in ("ja", "zh"):
            assert not re.search(r"[,:?;](?!\d)", text)
