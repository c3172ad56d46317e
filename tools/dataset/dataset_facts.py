"""The facts behind the data set: which values a question is about, before it has a language.

A fact is in the train part, or held out, or held out and harder: longer or larger than anything
in the train part.  Facts are divided by a hash of the fact, whatever the language, so a held-out
question is never a train question in another language or in other words.  Number words are
divided by the number.

Choices come from SHA-256 rather than `random`, whose sequences may change between
Python versions.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, TypeVar

T = TypeVar("T")

PARTS = ("train", "heldout", "harder")
CANDIDATES = 600

# Countries with one undisputed currency.
COUNTRIES = (
    "AM AR BR CA CH CL CO CR CZ DK EG HU ID IN IS JO JP KE KH KR KW MA MX MY NG NO NP NZ OM PE "
    "PL QA RO SA SE TH TR UA VN"
)

# A large unit, a small one, how many make one, and up to what number of the small one is asked.
UNITS = (
    ("duration-week", "duration-day", 7, 6),
    ("duration-year", "duration-month", 12, 9),
    ("duration-minute", "duration-second", 60, 9),
)

# Regular in every language, beside the tens and units that they consist of.
SPELLED = [number for number in range(21, 70) if number % 10]

LETTERS = "ABCDEFGHKLMNPRST"


def digest(*key: object) -> int:
    return int.from_bytes(sha256(repr(key).encode()).digest()[:8], "big")


def shuffled(items: Sequence[T], *key: object) -> list[T]:
    return sorted(items, key=lambda item: digest(key, item))


def pick(items: Sequence[T], *key: object) -> T:
    return items[digest(key) % len(items)]


def belongs(part: str, role: str, fact: object) -> bool:
    """Whether a fact may be in a part: one in four is held out; those that are harder all are."""
    return part == "harder" or (digest("part", role, fact) % 4 == 0) == (part == "heldout")


def numbers_below(limit: int, count: int, *key: object) -> list[int]:
    """That many different numbers from 1 to below the limit."""
    return shuffled(range(1, limit), "numbers", key)[:count]


def length(part: str, i: int, usual: tuple[int, int], harder: tuple[int, int]) -> int:
    """One of two lengths, in turn."""
    return (harder if part == "harder" else usual)[i % 2]


def chained_sum(part: str) -> Iterator[tuple[int, ...]]:
    """A number and what is added to it or, where negative, taken from it."""
    for i in range(CANDIDATES):
        key = ("sum", part == "harder", i)
        fact = [2 + digest(key, 0) % 11]
        for place in range(1, length(part, i, (3, 4), (5, 6))):
            change = 2 + digest(key, place) % 8
            down = digest(key, "down", place) % 2 == 0 and change < 6 and sum(fact) > change
            fact.append(-change if down else change)
        yield tuple(fact)


def count_letters(part: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A letter and a list that holds it."""
    for i in range(CANDIDATES):
        key = ("count", part == "harder", i)
        letters = [pick("ABCD", key, at) for at in range(length(part, i, (4, 5), (7, 8)))]
        yield pick(letters, key), tuple(letters)


def date_after(part: str) -> Iterator[tuple[int, int, int]]:
    """A month, a day of it, and a number of days that stays within the month."""
    for i in range(CANDIDATES):
        key = ("date", part == "harder", i)
        days = 10 + digest(key) % 5 if part == "harder" else 2 + digest(key) % 7
        yield 1 + digest(key, "month") % 12, 2 + digest(key, "day") % 12, days


def order_teams(part: str) -> Iterator[tuple[tuple[str, int], ...]]:
    """Teams and their points: from 1 to 3, all of which occur."""
    for i in range(CANDIDATES):
        key = ("order", part == "harder", i)
        count = length(part, i, (3, 4), (5, 6))
        points = [1, 2, 3, *(1 + digest(key, at) % 3 for at in range(count - 3))]
        teams = shuffled(LETTERS[:8], key)[:count]
        yield tuple(zip(teams, shuffled_places(points, key), strict=True))


def shuffled_places(items: Sequence[T], *key: object) -> list[T]:
    """As `shuffled`, for items that may be equal."""
    return [items[place] for place in shuffled(range(len(items)), "places", key)]


def follow_route(part: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], int]]:
    """Stops in the order in which arrows lead through them, the stops in the order in which
    their arrows are listed, and how many arrows to follow from the first stop."""
    for i in range(CANDIDATES):
        key = ("route", part == "harder", i)
        steps = length(part, i, (2, 3), (4, 5))
        stops = shuffled(LETTERS, key)[: steps + 2]
        yield tuple(stops), tuple(shuffled(stops[:-1], key, "listed")), steps


def shop(part: str) -> Iterator[tuple[tuple[int, int, int], ...]]:
    """Purchases: which item, how many, and the price of one."""
    for i in range(CANDIDATES):
        key = ("shop", part == "harder", i)
        items = shuffled(range(8), key)[: 3 if part == "harder" else 2]
        yield tuple(
            (item, 2 + digest(key, item, "count") % 2, 2 + digest(key, item, "price") % 6)
            for item in items
        )


def convert_units(part: str) -> Iterator[tuple[int, int, int]]:
    """A row of UNITS, a number of its large unit and one of its small unit."""
    for large in (7, 8, 9) if part == "harder" else (2, 3, 4, 5, 6):
        for row, (*_, most) in enumerate(UNITS):
            yield from ((row, large, small) for small in range(2, most + 1))


def initials(part: str) -> Iterator[tuple[int, ...]]:
    """Words, as places in a list of them."""
    for i in range(CANDIDATES):
        count = length(part, i, (3, 4), (5, 6))
        yield tuple(shuffled(range(20), "initials", part == "harder", i)[:count])


def read_form(part: str) -> Iterator[tuple[tuple[tuple[int, int], ...], int]]:
    """The fields of a form with a value each, as numbers, and which line is asked for."""
    for i in range(CANDIDATES):
        key = ("form", part == "harder", i)
        fields = shuffled(range(5), key)[: 5 if part == "harder" else 3]
        values = tuple((field, digest(key, field) % 1000) for field in fields)
        yield values, digest(key) % len(fields)


def largest(part: str) -> Iterator[tuple[int, ...]]:
    """Numbers from 10 to 99 with different tens."""
    for i in range(CANDIDATES):
        key = ("largest", part == "harder", i)
        tens = numbers_below(10, length(part, i, (3, 4), (6, 7)), key)
        yield tuple(10 * ten + digest(key, ten) % 10 for ten in tens)


def currency(part: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Countries and which of them is asked for."""
    for i in range(CANDIDATES):
        key = ("currency", part == "harder", i)
        places = shuffled(COUNTRIES.split(), key)[: length(part, i, (3, 3), (5, 6))]
        yield tuple(places), digest(key) % len(places)


def number_words(part: str) -> Iterator[tuple[int, ...]]:
    """Numbers to be read from their words."""
    known = [n for n in SPELLED if belongs("heldout", "number", n) == (part != "train")]
    for i in range(CANDIDATES):
        count = length(part, i, (1, 2), (3, 4))
        yield tuple(shuffled(known, "words", part == "harder", i)[:count])


def apply_rule(part: str) -> Iterator[tuple[tuple[int, ...], int]]:
    """Which of six days, colours or groups a rule names, and which one is asked for: one that it
    names as often as not."""
    for i in range(CANDIDATES):
        key = ("rule", part == "harder", i)
        everything = shuffled(range(6), key)
        count = length(part, i // 2, (2, 3), (4, 5))
        named, others = everything[:count], everything[count:]
        yield tuple(named), pick(named if i % 2 else others, key)


STEPS = (
    chained_sum,
    count_letters,
    date_after,
    order_teams,
    follow_route,
    shop,
    convert_units,
    initials,
)
LOOK = (read_form, largest, currency, number_words, apply_rule)

KINDS = {
    **dict.fromkeys((function.__name__ for function in STEPS), "steps"),
    **dict.fromkeys((function.__name__ for function in LOOK), "look"),
}
FACTS: dict[str, Callable[[str], Iterator[Any]]] = {
    function.__name__: function for function in (*STEPS, *LOOK)
}


def facts(task: str, part: str) -> list[Any]:
    """The facts of a task that may be in a part, each once."""
    by_itself = task == "number_words"  # divided by the number already
    found = dict.fromkeys(FACTS[task](part))
    return [fact for fact in found if by_itself or belongs(part, task, fact)]
