"""Repeats in text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasttune.text.repetition import ends_in_loop, longest_repeat, split_words


def words(text: str) -> list[str]:
    return [word.text for word in split_words(text)]


def test_words_of_scripts_with_and_without_spaces():
    assert words("The cat's 3.5 Mice") == ["the", "cat", "'", "s", "3", ".", "5", "mice"]
    assert words("日本のGDPは5位") == ["日", "本", "の", "gdp", "は", "5", "位"]
    assert words("서울 은 수도") == ["서울", "은", "수도"]
    assert words("Straße STRASSE") == ["strasse", "strasse"]
    assert words("  \n") == []
    assert words("a" + " " * 8 + "b") == ["a", "b"] and len(words(" " * 11)) == 3


def test_the_longest_repeat_and_its_place():
    text = "It is. I am here, I am here, I am here, I"
    found = longest_repeat(text)
    assert found is not None and (found.words, found.period) == (13, 4)
    assert text[found.start : found.end] == "I am here, I am here, I am here, I"
    assert longest_repeat("one two three") is None
    assert longest_repeat("") is None


def test_of_two_equally_long_repeats_the_shorter_phrase_counts():
    found = longest_repeat("a a a a")
    assert found is not None and (found.words, found.period) == (4, 1)


@given(st.lists(st.sampled_from("abc"), max_size=14))
def test_no_repeat_is_longer_than_the_one_found(letters):
    """Against trying every stretch."""
    longest = 0
    for start in range(len(letters)):
        for end in range(start + 2, len(letters) + 1):
            part = letters[start:end]
            periods = range(1, len(part) // 2 + 1)
            if any(part[period:] == part[:-period] for period in periods):
                longest = max(longest, len(part))
    found = longest_repeat(" ".join(letters))
    assert (found.words if found else 0) == longest


def test_a_loop_is_a_phrase_three_times_at_the_end():
    assert ends_in_loop("So: yes and no, yes and no, yes and no, ye")
    assert ends_in_loop("そうですそうですそうですそ")
    assert not ends_in_loop("yes and no, yes and no, but then")
    assert not ends_in_loop("yes and no, yes and no")  # twice
    assert ends_in_loop("no no no no no no n") and not ends_in_loop("no no no n")
    assert not ends_in_loop("")


def test_a_model_can_be_caught_in_white_space():
    assert ends_in_loop("440 ; 5 610" + "\u2003" * 40) and ends_in_loop("yes" + "\n" * 20)
    assert not ends_in_loop("if so:\n" + " " * 8 + "return")


@pytest.mark.parametrize("text", ["0." + "3" * 150, "na" * 80, "서울" * 60, "_" * 99, "ສະບາຍ" * 9])
def test_a_loop_without_spaces(text):
    assert ends_in_loop(text)
    found = longest_repeat(text)
    assert found is not None and found.end == len(text)


def test_the_last_word_of_a_text_that_was_cut_does_not_hide_its_loop():
    assert ends_in_loop("the mountain is the mountain is the mountain is the mount")
