"""The facts behind the data set, split so that train and held-out never share one.

Countries are divided by hand.  Everything else (years, numbers of days, quantities)
is divided by a hash of the value and of the role it plays, whatever the language.
Choices come from SHA-256 rather than `random`, whose sequences may change between
Python versions.
"""

from calendar import monthrange
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from hashlib import sha256
from itertools import combinations, permutations
from typing import Any, TypeVar

from dataset_locale import official_language

T = TypeVar("T")

# Countries with one undisputed currency, and names that take no article in any language.
COUNTRIES = {
    "train": (
        "AM AO AR AT BE BR CA CL CO CR CZ DE DK EG ES FI FR HU ID IE IN IT JP KH KR KW LI LT LV "
        "MA MX MY MZ NG NO NZ PL PT QA RO SA SE SI TH VN"
    ),
    "heldout": "EE GR GT HN IS JO KE NP OM PE",
}

# Official status is a matter of definition there (Japan) or shared by regions (Spain).
NO_LANGUAGE_QUESTION = {"ES", "JP", "NG", "NZ"}

UNITS = (
    ("length-kilometer", "length-meter"),
    ("mass-kilogram", "mass-gram"),
    ("volume-liter", "volume-milliliter"),
)


def digest(*key: object) -> int:
    return int.from_bytes(sha256(repr(key).encode()).digest()[:8], "big")


def shuffled(items: Sequence[T], *key: object) -> list[T]:
    return sorted(items, key=lambda item: digest(key, item))


def pick(items: Sequence[T], *key: object) -> T:
    return items[digest(key) % len(items)]


def only(split: str, role: str, values: Sequence[T]) -> list[T]:
    """The values that may play a role in a split: about one in eight is held out."""
    held_out = split == "heldout"
    return [value for value in values if (digest("split", role, value) % 8 == 0) == held_out]


def trip_currency(split: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Three countries and which of them (0 to 2) is asked for."""
    for stops in combinations(COUNTRIES[split].split(), 3):
        yield tuple(shuffled(stops, "stops", stops)), digest(stops) % 3


def same_language(split: str) -> Iterator[tuple[str, ...]]:
    """Three countries, exactly two of which share their only official language."""
    known = [
        country
        for country in COUNTRIES[split].split()
        if official_language(country) and country not in NO_LANGUAGE_QUESTION
    ]
    for countries in permutations(known, 3):
        if len({official_language(country) for country in countries}) == 2:
            yield countries


def weekday_of_date(split: str) -> Iterator[tuple[date, date]]:
    """A day whose weekday is given and a later one in the same month."""
    years = only(split, "year", range(1950, 2050))
    for i in range(300):
        year, month = pick(years, "known", i), 1 + digest("month", i) % 12
        day, gap = 2 + digest("day", i) % 9, 8 + digest("gap", i) % 11
        if gap % 7:
            yield date(year, month, day), date(year, month, day + gap)


def sort_numbers(split: str) -> Iterator[tuple[int, ...]]:
    """Four numbers, in tenths."""
    values = only(split, "sort", range(11, 60_000, 7))
    small = [value for value in values if value < 9_999]
    for i in range(300):
        numbers = [pick(small if j < 2 else values, "sort", i, j) for j in range(4)]
        if len(set(numbers)) == 4 and numbers not in (sorted(numbers), sorted(numbers)[::-1]):
            yield tuple(shuffled(numbers, "order", i))


def price_total(split: str) -> Iterator[tuple[tuple[int, int, int], ...]]:
    """Two purchases: which item, how many, and its price in tenths of the unit."""
    prices = only(split, "price", range(15, 200))
    for i in range(300):
        first, second = shuffled(range(8), "item", i)[:2]
        yield (
            (first, 2 + digest("count", i, 0) % 5, pick(prices, "price", i, 0)),
            (second, 2 + digest("count", i, 1) % 5, pick(prices, "price", i, 1)),
        )


def weekday_after(split: str) -> Iterator[tuple[int, int]]:
    """A weekday and a number of days."""
    for days in only(split, "days later", range(8, 75)):
        if days % 7:
            for weekday in range(7):
                yield weekday, days


def days_between(split: str) -> Iterator[tuple[date, date]]:
    """Two days in neighbouring months of one year."""
    years = only(split, "year", range(1950, 2050))
    for i in range(300):
        year, month = pick(years, "between", i), 1 + digest("start", i) % 11
        last = monthrange(year, month)[1]
        first_day, second_day = 2 + digest("a", i) % (last - 4), 2 + digest("b", i) % 26
        yield date(year, month, first_day), date(year, month + 1, second_day)


def leap_year(split: str) -> Iterator[int]:
    """Years of the Gregorian calendar; the four rules come up about equally often."""
    kinds: tuple[Callable[[int], bool], ...] = (
        lambda year: year % 4 != 0,
        lambda year: year % 4 == 0 and year % 100 != 0,
        lambda year: year % 100 == 0 and year % 400 != 0,
        lambda year: year % 400 == 0,
    )
    years = only(split, "year", range(1600, 2801))
    for i, kind in enumerate(kinds):
        yield from shuffled([year for year in years if kind(year)], "leap", i)[:9]


def duration(split: str) -> Iterator[tuple[int, int]]:
    """Hours and minutes."""
    pairs = [(hours, minutes) for hours in range(2, 16) for minutes in range(2, 60)]
    yield from only(split, "duration", pairs)


def compare_units(split: str) -> Iterator[tuple[int, int, int]]:
    """A row of UNITS, a value in tenths of its large unit, and one in its small unit."""
    large = only(split, "large", range(12, 96))
    for i in range(400):
        tenths = pick(large, "large", i)
        near = range(tenths * 100 - 300, tenths * 100 + 310, 10)
        small = pick(only(split, "small", near), "small", i)
        if small != tenths * 100:
            yield i % len(UNITS), tenths, small


def count_letters(split: str) -> Iterator[tuple[str, ...]]:
    """Two countries whose names are to be counted."""
    yield from permutations(COUNTRIES[split].split(), 2)


FACTS: dict[str, Callable[[str], Iterator[Any]]] = {
    function.__name__: function
    for function in (
        trip_currency,
        same_language,
        weekday_of_date,
        sort_numbers,
        price_total,
        weekday_after,
        days_between,
        leap_year,
        duration,
        compare_units,
        count_letters,
    )
}
