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
from calendar import monthrange
from collections import Counter
from datetime import date
from decimal import Decimal
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


def of_task(task: str, split: str | None = None) -> list[Row]:
    rows = [row for row in (ROWS[split] if split else ALL_ROWS) if row["task"] == task]
    assert len(rows) >= len(LANGUAGES)
    return rows


# Reading numbers, dates, weekdays and names back from the text

MONTHS = {
    "en": "January February March April May June July August September October November December",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre "
    "diciembre",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
}
DATE_PATTERNS = {
    "en": r"(?P<month>{months}) (?P<day>\d+)(?:, (?P<year>\d{{4}}))?",
    "es": r"(?P<day>\d+) de (?P<month>{months})(?: de (?P<year>\d{{4}}))?",
    "fr": r"(?P<day>\d+) (?P<month>{months})(?: (?P<year>\d{{4}}))?",
    "de": r"(?P<day>\d+)\. (?P<month>{months})(?: (?P<year>\d{{4}}))?",
    "ja": r"(?:(?P<year>\d{{4}})年)?(?P<month>\d+)月(?P<day>\d+)日",
    "zh": r"(?:(?P<year>\d{{4}})年)?(?P<month>\d+)月(?P<day>\d+)日",
    "ko": r"(?:(?P<year>\d{{4}})년 )?(?P<month>\d+)월 (?P<day>\d+)일",
}
WEEKDAYS = {
    "en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "es": "lunes martes miércoles jueves viernes sábado domingo",
    "fr": "lundi mardi mercredi jeudi vendredi samedi dimanche",
    "de": "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
    "ja": "月曜日 火曜日 水曜日 木曜日 金曜日 土曜日 日曜日",
    "zh": "星期一 星期二 星期三 星期四 星期五 星期六 星期日",
    "ko": "월요일 화요일 수요일 목요일 금요일 토요일 일요일",
}
UNITS = {
    "en": "kilometers meters kilograms grams liters milliliters",
    "es": "kilómetros metros kilogramos gramos litros mililitros",
    "fr": "kilomètres? mètres kilogrammes? grammes litres? millilitres",
    "de": "Kilometer Meter Kilogramm Gramm Liter Milliliter",
    "ja": "キロメートル メートル キログラム グラム リットル ミリリットル",
    "zh": "公里 米 千克 克 升 毫升",
    "ko": "킬로미터 미터 킬로그램 그램 리터 밀리리터",
}
NUMBER = r"\d+(?:[.,\u202f]\d+)*"
QUOTED = r"[\"「“‘«„]\s?(\w+)\s?[\"」”’»“]"
DECIMAL_COMMA = {"es", "fr", "de"}


def number(text: str, language: str) -> Decimal:
    if language in DECIMAL_COMMA:
        return Decimal(text.replace(".", "").replace("\u202f", "").replace(",", "."))
    return Decimal(text.replace(",", ""))


def numbers(text: str, language: str) -> list[Decimal]:
    return [number(found, language) for found in re.findall(NUMBER, text)]


def date_pattern(language: str) -> str:
    months = MONTHS.get(language, "").replace(" ", "|")
    return DATE_PATTERNS[language].format(months=months)


def dates(text: str, language: str) -> list[date]:
    """The dates in a text; where the year is left out, it is the year of the other date."""
    found = list(re.finditer(date_pattern(language), text))
    (year,) = {match["year"] for match in found} - {None}
    names = MONTHS.get(language, "").split()
    return [
        date(
            int(year),
            names.index(match["month"]) + 1 if names else int(match["month"]),
            int(match["day"]),
        )
        for match in found
    ]


def weekdays(text: str, language: str) -> list[int]:
    names = WEEKDAYS[language].split()
    return [names.index(found) for found in re.findall("|".join(names), text)]


def quantities(text: str, language: str) -> list[str]:
    units = UNITS[language].replace(" ", "|")
    return re.findall(rf"{NUMBER} ?(?:{units})", text)


def country_codes(language: str) -> dict[str, str]:
    babel = pytest.importorskip("babel")
    territories = babel.Locale.parse(language).territories
    return {territories[code]: code for code in CURRENCIES}


def countries(row: Row) -> list[str]:
    """The countries that a row is about."""
    if row["task"] == "count_letters":
        names = re.findall(QUOTED, row["instruction"])
    else:
        lines = re.sub(r"(?m)^\d\. ", "", row["input"])
        names = re.split(r"\n|、|, ", lines)
    codes = country_codes(row["language"])
    return [codes[name] for name in names]


# ISO 4217 and official languages, written down apart from CLDR.

TENDER = {
    **{"EUR": "AT BE DE EE ES FI FR GR IE IT LT LV PT SI", "CHF": "LI"},
    **{"AMD": "AM", "AOA": "AO", "ARS": "AR", "BRL": "BR", "CAD": "CA", "CLP": "CL"},
    **{"COP": "CO", "CRC": "CR", "CZK": "CZ", "DKK": "DK", "EGP": "EG", "GTQ": "GT"},
    **{"HNL": "HN", "HUF": "HU", "IDR": "ID", "INR": "IN", "ISK": "IS", "JOD": "JO"},
    **{"JPY": "JP", "KES": "KE", "KHR": "KH", "KRW": "KR", "KWD": "KW", "MAD": "MA"},
    **{"MXN": "MX", "MYR": "MY", "MZN": "MZ", "NGN": "NG", "NOK": "NO", "NPR": "NP"},
    **{"NZD": "NZ", "OMR": "OM", "PEN": "PE", "PLN": "PL", "QAR": "QA", "RON": "RO"},
    **{"SAR": "SA", "SEK": "SE", "THB": "TH", "VND": "VN"},
}
CURRENCIES = {country: code for code, places in TENDER.items() for country in places.split()}
OFFICIAL = {
    **{"es": "AR CL CO CR GT HN", "ar": "EG JO KW OM QA SA", "pt": "AO BR MZ PT", "de": "AT DE LI"},
    **{"hy": "AM", "cs": "CZ", "da": "DK", "et": "EE", "fr": "FR", "el": "GR", "hu": "HU"},
    **{"id": "ID", "is": "IS", "it": "IT", "km": "KH", "ko": "KR", "lt": "LT", "lv": "LV"},
    **{"ms": "MY", "ne": "NP", "pl": "PL", "ro": "RO", "sv": "SE", "sl": "SI", "th": "TH"},
    **{"vi": "VN"},
}
OFFICIAL_LANGUAGES = {country: code for code, at in OFFICIAL.items() for country in at.split()}
DESCENDING = {
    "en": "largest to smallest",
    "ja": "大きい順",
    "zh": "从大到小",
    "ko": "큰 것부터",
    "es": "de mayor a menor",
    "fr": "du plus grand au plus petit",
    "de": "von der größten zur kleinsten",
}


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


# Truth


def test_currencies() -> None:
    numbers_of = pytest.importorskip("babel.numbers")
    for row in of_task("trip_currency"):
        language = row["language"]
        ordinal = re.search(r"\d|첫|두 번째|세 번째", row["instruction"])
        assert ordinal is not None
        asked = {"첫": 1, "두 번째": 2, "세 번째": 3}.get(ordinal[0]) or int(ordinal[0])
        country = countries(row)[asked - 1]
        currency = CURRENCIES[country]
        (name,) = (name for name, code in country_codes(language).items() if code == country)
        assert currency in row["reasoning"]
        assert name in row["output"]
        currency_name = numbers_of.get_currency_name(currency, 1, language)
        assert re.sub(r"[\s・]", "", currency_name) in re.sub(r"[\s・]", "", row["output"])


def test_official_languages() -> None:
    babel = pytest.importorskip("babel")
    for row in of_task("same_language"):
        names = dict(babel.Locale.parse(row["language"]).territories)
        spoken = {country: OFFICIAL_LANGUAGES[country] for country in countries(row)}
        ((shared, count),) = Counter(spoken.values()).most_common(1)
        assert count == 2
        for country, code in spoken.items():
            assert (names[country] in row["output"]) == (code == shared)
        assert babel.Locale.parse(row["language"]).languages[shared] in row["output"]


def test_weekdays_of_dates() -> None:
    for row in of_task("weekday_of_date"):
        language = row["language"]
        (known,) = dates(row["input"], language)
        assert weekdays(row["input"], language) == [known.weekday()]
        (target,) = dates(row["instruction"], language)
        assert dates(row["output"], language) == [target]
        assert weekdays(row["output"], language) == [target.weekday()]
        steps = [(known.weekday() + i) % 7 for i in range((target - known).days % 7 + 1)]
        assert weekdays(row["reasoning"], language) == steps


def test_weekdays_after() -> None:
    for row in of_task("weekday_after"):
        language = row["language"]
        (start,) = weekdays(row["instruction"], language)
        (days,) = numbers(row["instruction"], language)
        end = (start + int(days)) % 7
        assert weekdays(row["output"], language) == [start, end]
        assert numbers(row["output"], language) == [days]
        assert weekdays(row["reasoning"], language)[-1] == end


def test_days_between() -> None:
    for row in of_task("days_between"):
        language = row["language"]
        start, end = sorted(dates(row["instruction"], language))
        assert sorted(dates(row["output"], language)) == [start, end]
        without_dates = re.sub(date_pattern(language), "", row["output"])
        assert numbers(without_dates, language) == [(end - start).days]
        assert monthrange(start.year, start.month)[1] in numbers(row["reasoning"], language)


def test_leap_years() -> None:
    kinds = set()
    for row in of_task("leap_year"):
        (year,) = map(int, numbers(row["instruction"], row["language"]))
        leap = (date(year + 1, 1, 1) - date(year, 1, 1)).days == 366
        assert numbers(row["output"], row["language"]) == [year, 366 if leap else 365]
        kinds.add((leap, year % 100 == 0))
    assert len(kinds) == 4


def test_durations() -> None:
    for row in of_task("duration"):
        hours, minutes = numbers(row["instruction"], row["language"])
        assert minutes < 60
        total = hours * 60 + minutes
        assert numbers(row["output"], row["language"]) == [hours, minutes, total]


def test_compared_units() -> None:
    for row in of_task("compare_units"):
        language = row["language"]
        large, small = quantities(row["instruction"], language)
        in_small_units = 1000 * numbers(large, language)[0]
        steps = [1, 1000, in_small_units / 1000, in_small_units]
        assert numbers(row["reasoning"], language)[:4] == steps
        difference = in_small_units - numbers(small, language)[0]
        assert difference != 0
        assert quantities(row["output"], language)[0] == (large if difference > 0 else small)


def test_sorted_numbers() -> None:
    directions = set()
    for row in of_task("sort_numbers"):
        language = row["language"]
        descending = DESCENDING[language] in row["instruction"]
        expected = sorted(numbers(row["input"], language), reverse=descending)
        assert len(set(expected)) == 4
        assert numbers(row["output"], language) == expected
        directions.add((language, descending))
    assert len(directions) == 2 * len(LANGUAGES)


def test_prices() -> None:
    for row in of_task("price_total"):
        a, b, c, d = numbers(row["input"], row["language"])
        assert numbers(row["output"], row["language"]) == [a * b + c * d]


def test_letters() -> None:
    for row in of_task("count_letters"):
        words = re.findall(QUOTED, row["instruction"])
        assert len(words) == 2
        assert re.findall(QUOTED, row["output"]) == words
        assert numbers(row["output"], row["language"]) == [sum(map(len, words))]


def test_every_equation_holds() -> None:
    side = rf"{NUMBER}(?: [×+-] {NUMBER})*"
    seen = 0
    for row in ALL_ROWS:
        for left, sign, right in re.findall(rf"({side}) ([=<>]) ({side})", row["reasoning"]):
            a, b = (evaluate(text, row["language"]) for text in (left, right))
            assert {"=": a == b, "<": a < b, ">": a > b}[sign], row["reasoning"]
            seen += 1
    assert seen > len(ALL_ROWS)


def evaluate(text: str, language: str) -> Decimal:
    """A sum of products, such as 2 × 7 + 3."""
    total = Decimal(0)
    for sign, term in re.findall(r"(^|[+-] )([^+-]+)", text):
        product = Decimal(1)
        for factor in term.strip().split(" × "):
            product *= number(factor, language)
        total += -product if sign == "- " else product
    return total


# Train and held-out


def test_no_output_or_question_is_in_both_parts() -> None:
    for fields in (("output",), ("instruction", "input")):
        train, heldout = ({tuple(row[f] for f in fields) for row in ROWS[s]} for s in SPLITS)
        assert not train & heldout


def fact_keys(row: Row) -> set[object]:
    """What must not play the same role in both parts, whatever the language."""
    task, language = row["task"], row["language"]
    if task in ("trip_currency", "same_language", "count_letters"):
        return set(countries(row))
    if task in ("weekday_of_date", "days_between"):
        return {day.year for day in dates(row["instruction"], language)}
    if task == "duration":
        return {tuple(numbers(row["instruction"], language))}
    if task == "price_total":
        scale = {"ja": Decimal("0.1"), "ko": Decimal("0.01")}.get(language, Decimal(10))
        first_price = 0 if language in ("ja", "zh", "ko") else 1
        return {price * scale for price in numbers(row["input"], language)[first_price::2]}
    return set(numbers(row["input"] or row["instruction"], language))


def test_no_fact_is_in_both_parts() -> None:
    for task in sorted({row["task"] for row in ALL_ROWS}):
        train, heldout = (
            {key for row in of_task(task, split) for key in fact_keys(row)} for split in SPLITS
        )
        assert train and heldout and not train & heldout, task


def test_held_out_countries_are_never_mentioned_in_train() -> None:
    held_out = {
        country for row in of_task("trip_currency", "heldout") for country in countries(row)
    }
    for row in ROWS["train"]:
        words = set(re.findall(r"\w+", " ".join(row[field] for field in FIELDS)))
        for name, code in country_codes(row["language"]).items():
            assert code not in held_out or name not in words


# Form


def test_keys_and_order() -> None:
    for row in ALL_ROWS:
        assert list(row) == ["language", "task", *FIELDS]
        assert all(row[key] for key in row if key != "input")


def test_size_and_balance() -> None:
    assert len(ALL_ROWS) >= 550
    assert 60 <= len(ROWS["heldout"]) <= 90
    for split in SPLITS:
        assert {row["language"] for row in ROWS[split]} == LANGUAGES
        counts = Counter((row["task"], row["language"]) for row in ROWS[split])
        tasks = {task for task, _ in counts}
        assert len(tasks) >= 8
        assert len(counts) == len(tasks) * len(LANGUAGES)
        assert len(set(counts.values())) == 1
    assert sum(bool(row["input"]) for row in ALL_ROWS) >= len(ALL_ROWS) / 3


def test_no_duplicates() -> None:
    questions = Counter((row["instruction"], row["input"]) for row in ALL_ROWS)
    assert max(questions.values()) == 1


def test_no_stray_characters() -> None:
    for row in ALL_ROWS:
        for field in FIELDS:
            text = row[field]
            assert "<|" not in text
            assert not re.search(r"[{}\t\r\u00a0]|  |None|-(kilo|milli|hour|minute)", text)
            assert all(line and line == line.strip() for line in text.split("\n") if text)
            assert "\n" not in text or field == "input"
            assert "\u202f" not in text or row["language"] == "fr"


def test_lengths() -> None:
    for row in ALL_ROWS:
        length = sum(len(row[field]) for field in FIELDS)
        low, high = (50, 160) if row["language"] in ("ja", "zh", "ko") else (110, 320)
        assert low <= length <= high, row


KANA, HANGUL, HAN = r"[\u3040-\u30ff]", r"[\uac00-\ud7a3]", r"[\u4e00-\u9fff]"


def test_scripts() -> None:
    for row in ALL_ROWS:
        language = row["language"]
        prose = row["instruction"] + row["reasoning"]
        text = prose + row["input"] + row["output"]
        assert bool(re.search(KANA, prose)) == (language == "ja")
        assert bool(re.search(HANGUL, prose)) == (language == "ko")
        if language in ("ja", "zh"):
            assert re.search(HAN, text)
        else:
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
            assert not re.search(r"\b[yY] (?:[iIíÍ]|[hH][iIíÍ])|\bo (?:[oO8]|11\b)", text)
        if row["language"] == "fr":
            assert not re.search(r"[^ ][?:;!»]|«[^ ]", text)
            assert not re.search(r"\b(?:de|le|la|que) [aeiouéèêâîôûy]", text)
        if row["language"] in ("ja", "zh"):
            assert not re.search(r"[,:?;](?!\d)", text)
