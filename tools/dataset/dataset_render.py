"""From a fact to the words that fill a phrasing, one function for each task."""

from calendar import isleap, monthrange
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

from dataset_facts import UNITS
from dataset_locale import Words, currency_code, official_language
from dataset_phrases import Vocabulary

Values = dict[str, Any]


def trip_currency(
    words: Words, vocabulary: Vocabulary, fact: tuple[tuple[str, ...], int], variant: int
) -> Values:
    stops, asked = fact
    place = words.place(stops[asked])
    return {
        **{f"stop{i}": words.country(stop) for i, stop in enumerate(stops, 1)},
        "ordinal": vocabulary.ordinals[asked],
        "country": words.country(stops[asked]),
        "Place": place[0].upper() + place[1:],
        "code": currency_code(stops[asked]),
        "currency": words.currency(currency_code(stops[asked])),
    }


def same_language(
    words: Words, vocabulary: Vocabulary, countries: tuple[str, ...], variant: int
) -> Values:
    languages = [official_language(country) or "" for country in countries]
    shared = max(languages, key=languages.count)
    names = [words.country(country) for country in countries]
    same1, same2 = (name for name, code in zip(names, languages, strict=True) if code == shared)
    return {
        "list": vocabulary.list_separator.join(names),
        **{f"country{i}": name for i, name in enumerate(names, 1)},
        **{f"language{i}": words.language_name(code) for i, code in enumerate(languages, 1)},
        "same1": same1,
        "same2": same2,
        "shared": words.language_name(shared),
    }


def count_on(words: Words, vocabulary: Vocabulary, weekday: int, days: int) -> Values:
    """The weekday some days later, by way of the days that are left after whole weeks."""
    weeks, rest = divmod(days, 7)
    steps = [words.weekday(weekday + step) for step in range(1, rest + 1)]
    return {
        "weekday": words.weekday(weekday),
        "days": days,
        "weeks": weeks,
        "rest": rest,
        "steps": vocabulary.list_separator.join(steps),
        "answer": words.weekday(weekday + days),
    }


def weekday_of_date(
    words: Words, vocabulary: Vocabulary, fact: tuple[date, date], variant: int
) -> Values:
    known, target = fact
    return {
        "known": words.long_date(known),
        "target": words.long_date(target),
        "first": known.day,
        "last": target.day,
        **count_on(words, vocabulary, known.weekday(), (target - known).days),
    }


def weekday_after(
    words: Words, vocabulary: Vocabulary, fact: tuple[int, int], variant: int
) -> Values:
    weekday, days = fact
    return count_on(words, vocabulary, weekday, days)


def sort_numbers(
    words: Words, vocabulary: Vocabulary, tenths: tuple[int, ...], variant: int
) -> Values:
    """The first instruction of the phrasing asks for ascending, the second for descending."""
    text = {value: words.number(Decimal(value) / 10) for value in tenths}
    ascending = sorted(tenths)
    separator = vocabulary.number_separator
    return {
        "list": separator.join(text[value] for value in tenths),
        **{f"n{i}": text[value] for i, value in enumerate(ascending, 1)},
        "sorted": separator.join(text[value] for value in sorted(tenths, reverse=variant == 1)),
    }


def price_total(
    words: Words,
    vocabulary: Vocabulary,
    purchases: tuple[tuple[int, int, int], ...],
    variant: int,
) -> Values:
    exponent, decimals = vocabulary.money_scale

    def amount(tenths: int) -> str:
        return words.number(tenths * Decimal(10) ** exponent, decimals)

    values: Values = {}
    for i, (item, count, price) in enumerate(purchases, 1):
        values |= {
            f"item{i}": vocabulary.items[item],
            f"count{i}": count,
            f"n{i}": amount(price),
            f"price{i}": vocabulary.money.format(amount(price)),
            f"cost{i}": amount(count * price),
        }
    total = amount(sum(count * price for _, count, price in purchases))
    return {**values, "sum": total, "total": vocabulary.money.format(total)}


def days_between(
    words: Words, vocabulary: Vocabulary, fact: tuple[date, date], variant: int
) -> Values:
    start, end = fact
    length = monthrange(start.year, start.month)[1]
    month1 = words.month(start)
    return {
        "start": words.day_and_month(start),
        "start_dated": words.long_date(start),
        "end": words.day_and_month(end),
        "end_dated": words.long_date(end),
        "month1": month1,
        "Month1": month1[0].upper() + month1[1:],
        "month2": words.month(end),
        "length": length,
        "day1": start.day,
        "left": length - start.day,
        "day2": end.day,
        "answer": (end - start).days,
    }


def leap_year(words: Words, vocabulary: Vocabulary, year: int, variant: int) -> Values:
    rule = sum(year % divisor == 0 for divisor in (4, 100, 400))
    return {
        "year": year,
        "rule": vocabulary.leap_rules[rule].format(year=year, rest=year % 4),
        "days": 366 if isleap(year) else 365,
    }


def duration(words: Words, vocabulary: Vocabulary, fact: tuple[int, int], variant: int) -> Values:
    hours, minutes = fact
    total = hours * 60 + minutes
    return {
        "hours": words.quantity(hours, "duration-hour"),
        "minutes": words.quantity(minutes, "duration-minute"),
        "total": words.quantity(total, "duration-minute"),
        "h": hours,
        "m": minutes,
        "product": hours * 60,
        "n": total,
    }


def compare_units(
    words: Words, vocabulary: Vocabulary, fact: tuple[int, int, int], variant: int
) -> Values:
    kind, tenths, small = fact
    large_unit, small_unit = UNITS[kind]
    large_text = words.quantity(Decimal(tenths) / 10, large_unit)
    small_text = words.quantity(small, small_unit)
    larger_first = tenths * 100 > small
    return {
        "more": vocabulary.more[kind],
        "large": large_text,
        "small": small_text,
        "one": words.quantity(1, large_unit),
        "thousand": words.quantity(1000, small_unit),
        "converted": words.quantity(tenths * 100, small_unit),
        "n1": words.number(tenths * 100),
        "sign": ">" if larger_first else "<",
        "n2": words.number(small),
        "winner": large_text if larger_first else small_text,
        "loser": small_text if larger_first else large_text,
    }


def count_letters(
    words: Words, vocabulary: Vocabulary, countries: tuple[str, ...], variant: int
) -> Values | None:
    names = [words.country(country) for country in countries]
    if not all(name.isalpha() and len(name) >= vocabulary.shortest_word for name in names):
        return None
    values: Values = {"sum": sum(map(len, names))}
    for i, name in enumerate(names, 1):
        values |= {
            f"word{i}": name,
            f"spelled{i}": vocabulary.letter_separator.join(name),
            f"n{i}": len(name),
        }
    return values


RENDER: dict[str, Callable[[Words, Vocabulary, Any, int], Values | None]] = {
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
