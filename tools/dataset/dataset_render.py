"""From a fact to the words that fill a phrasing, one function for each task.

A function gives the values of the instruction, "input" where the row has one, "steps", which are
the sentences of the reasoning, and "answer".
"""

from collections.abc import Callable
from typing import Any

from dataset_facts import UNITS
from dataset_locale import Words, currency_code
from dataset_phrases import Vocabulary, number_in_words

Values = dict[str, Any]


def chained_sum(words: Words, said: Vocabulary, fact: tuple[int, ...], variant: int) -> Values:
    steps, total = [], fact[0]
    for change in fact[1:]:
        steps.append(f"{signed(total, change)} = {total + change}")
        total += change
    return {
        "sum": f"{fact[0]}" + "".join(signed("", change) for change in fact[1:]),
        "start": fact[0],
        "changes": said.list_of(f"{change:+}" for change in fact[1:]),
        "steps": steps,
        "answer": total,
    }


def signed(before: object, change: int) -> str:
    return f"{before} {'-' if change < 0 else '+'} {abs(change)}"


def count_letters(
    words: Words, said: Vocabulary, fact: tuple[str, tuple[str, ...]], variant: int
) -> Values:
    letter, letters = fact
    steps = [said.colon(each, letters[: at + 1].count(letter)) for at, each in enumerate(letters)]
    return {
        "letter": letter,
        "input": said.list_of(letters),
        "steps": steps,
        "answer": letters.count(letter),
    }


def date_after(words: Words, said: Vocabulary, fact: tuple[int, int, int], variant: int) -> Values:
    month, day, days = fact
    return {
        "date": words.day_and_month(month, day),
        "days": days,
        "steps": [f"{day} + {days} = {day + days}"],
        "answer": words.day_and_month(month, day + days),
    }


def order_teams(
    words: Words, said: Vocabulary, fact: tuple[tuple[str, int], ...], variant: int
) -> Values:
    ranked = sorted(fact, key=lambda each: (-each[1], each[0]))
    return {
        "input": said.list_of(said.colon(points, team) for team, points in fact),
        "steps": [said.colon(points, team) for team, points in ranked],
        "answer": said.list_of(team for team, _ in ranked),
    }


def follow_route(
    words: Words,
    said: Vocabulary,
    fact: tuple[tuple[str, ...], tuple[str, ...], int],
    variant: int,
) -> Values:
    stops, listed, steps = fact
    onward = dict(zip(stops, stops[1:], strict=False))
    return {
        "start": stops[0],
        "count": steps,
        "input": said.list_of(f"{stop} → {onward[stop]}" for stop in listed),
        "steps": [
            said.colon(at, f"{stop} → {onward[stop]}") for at, stop in enumerate(stops[:steps], 1)
        ],
        "answer": stops[steps],
    }


def shop(
    words: Words, said: Vocabulary, fact: tuple[tuple[int, int, int], ...], variant: int
) -> Values:
    lines = [
        said.colon(said.items[item], f"{count} × {said.money.format(price)}")
        for item, count, price in fact
    ]
    costs = [count * price for _, count, price in fact]
    steps = [f"{count} × {price} = {count * price}" for _, count, price in fact]
    total = costs[0]
    for cost in costs[1:]:
        steps.append(f"{total} + {cost} = {total + cost}")
        total += cost
    return {"input": "\n".join(lines), "steps": steps, "answer": said.money.format(total)}


def convert_units(
    words: Words, said: Vocabulary, fact: tuple[int, int, int], variant: int
) -> Values:
    row, large, small = fact
    large_unit, small_unit, factor, _ = UNITS[row]
    product = large * factor
    return {
        "large": words.quantity(large, large_unit),
        "small": words.quantity(small, small_unit),
        "unit": said.small_units[row],
        "steps": [f"{large} × {factor} = {product}", f"{product} + {small} = {product + small}"],
        "answer": words.quantity(product + small, small_unit),
    }


def initials(words: Words, said: Vocabulary, fact: tuple[int, ...], variant: int) -> Values:
    chosen = [said.words.split()[place] for place in fact]
    return {
        "input": said.list_of(chosen),
        "steps": [said.colon(word, word[0]) for word in chosen],
        "answer": said.list_of(word[0] for word in chosen),
    }


def read_form(
    words: Words,
    said: Vocabulary,
    fact: tuple[tuple[tuple[int, int], ...], int],
    variant: int,
) -> Values:
    fields, asked = fact

    def value(field: int, number: int) -> str:
        return (
            said.items[number % 8],
            words.weekday(number % 7),
            said.money.format(2 + number % 90),
            f"{100 + number % 900}",
            said.colours[number % 6],
        )[field]

    lines = [said.colon(said.fields[field], value(field, number)) for field, number in fields]
    field, number = fields[asked]
    return {
        "field": said.fields[field],
        "input": "\n".join(lines),
        "steps": [lines[asked]],
        "answer": value(field, number),
    }


def largest(words: Words, said: Vocabulary, fact: tuple[int, ...], variant: int) -> Values:
    return {
        "input": said.list_of(fact),
        "steps": [said.colon(said.largest, max(fact))],
        "answer": max(fact),
    }


def currency(
    words: Words, said: Vocabulary, fact: tuple[tuple[str, ...], int], variant: int
) -> Values:
    countries, asked = fact
    lines = [said.colon(words.country(code), currency_code(code)) for code in countries]
    return {
        "country": words.country(countries[asked]),
        "input": "\n".join(lines),
        "steps": [lines[asked]],
        "answer": currency_code(countries[asked]),
    }


def number_words(words: Words, said: Vocabulary, fact: tuple[int, ...], variant: int) -> Values:
    spelled = [number_in_words(number, words.language) for number in fact]
    return {
        "words": said.list_of(spelled),
        "steps": [f"{number - number % 10} + {number % 10} = {number}" for number in fact],
        "answer": said.list_of(fact),
    }


def apply_rule(
    words: Words, said: Vocabulary, fact: tuple[tuple[int, ...], int], variant: int
) -> Values:
    """The first rule is about days, the second about colours, the third about groups."""
    named, asked = fact
    names = ([words.weekday(day) for day in range(6)], said.colours, "ABCDEF")[variant]
    # Up to the one that is asked for, or all of them.
    read = named[: named.index(asked) + 1] if asked in named else named
    steps = [said.colon(names[each], said.yes if each == asked else said.no) for each in read]
    return {
        "list": said.list_of(names[place] for place in named),
        "value": names[asked],
        "steps": steps,
        "answer": said.yes if asked in named else said.no,
    }


RENDER: dict[str, Callable[[Words, Vocabulary, Any, int], Values]] = {
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
