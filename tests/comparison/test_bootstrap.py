"""Intervals against what statistics knows about them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fasttune.comparison.bootstrap import (
    DRAWS,
    Sample,
    _counts,
    _student,
    difference_interval,
    interval,
)


def sample(values, seeds=(1,)) -> Sample:
    table = np.atleast_2d(np.asarray(values, dtype=float))
    return Sample([[(value, 1.0) for value in row] for row in table], seeds)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = interval(sample(values))
    error = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - error, abs=0.03)
    assert found.high == pytest.approx(values.mean() + error, abs=0.03)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(1)
    for rows in (10, 60):
        found = [interval(sample(random.normal(0, 1, rows))) for _ in range(300)]
        covered = sum(each.low <= 0 <= each.high for each in found) / 300
        assert 0.91 <= covered <= 0.985, rows


@pytest.mark.parametrize("seeds", [(1, 2), (1, 2, 3)])
def test_a_few_lucky_seeds_make_no_difference(seeds):
    """Two sides alike but for what the seed of each training adds to all rows."""
    random = np.random.default_rng(6)
    rows = random.normal(0, 1, 60)
    wrong = 0
    for _ in range(300):
        left, right = (
            sample([rows + luck for luck in random.normal(0, 1, len(seeds))], seeds)
            for _ in range(2)
        )
        wrong += difference_interval(left, right).excludes_zero
    assert wrong / 300 <= 0.08


def test_a_share_does_not_leave_its_range():
    shares = np.array([[1.0] * 20, [1.0] * 18 + [0.0] * 2])
    found = interval(sample(shares, (1, 2)))
    assert found.high == 1 and 0 <= found.low < 0.95
    nothing = sample(np.zeros((2, 20)), (1, 2))
    assert difference_interval(sample(shares, (1, 2)), nothing).high == 1


def test_students_quantiles():
    assert [_student(n) for n in (1, 10)] == pytest.approx([12.706, 2.228], abs=1e-3)
    assert [_student(n) for n in (11, 30, 1000)] == pytest.approx([2.201, 2.042, 1.962], abs=1e-3)


def test_the_same_rows_are_drawn_on_both_sides():
    """Two sides that differ by a constant differ by it in every draw, however the rows scatter."""
    values = np.random.default_rng(2).normal(0, 5, 50)
    found = difference_interval(sample(values + 0.1), sample(values))
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-6)
    assert found.excludes_zero
    shuffled = np.random.default_rng(3).permutation(values)
    assert not difference_interval(sample(shuffled + 0.1), sample(values)).excludes_zero


def test_a_ratio_weighs_its_rows():
    found = interval(Sample([[(10, 5), (20, 15)]], [1]))
    assert found.value == 30 / 20
    assert found.low == pytest.approx(20 / 15) and found.high == pytest.approx(2)


def test_seeds_that_differ_widen_the_interval():
    rows = np.random.default_rng(4).normal(0, 0.1, 100)
    alike = interval(sample([rows, rows, rows], (1, 2, 3)))
    apart = interval(sample([rows - 1, rows, rows + 1], (1, 2, 3)))
    assert apart.high - apart.low > 5 * (alike.high - alike.low)


def test_seeds_are_paired_where_both_sides_ran_with_them():
    rows = np.zeros(20)
    left = sample([rows - 1, rows, rows + 1], (1, 2, 3))
    right = sample([rows - 1.1, rows - 0.1, rows + 0.9], (1, 2, 3))
    paired = difference_interval(left, right)
    assert (paired.low, paired.high) == pytest.approx((0.1, 0.1), abs=1e-6)
    other = sample([rows - 1.1, rows - 0.1, rows + 0.9], (4, 5, 6))
    assert not difference_interval(left, other).excludes_zero


def test_rows_that_do_not_count():
    some = Sample([[(1, 1), (0, 0), (0, 1)]], [1])
    assert some.value() == 0.5
    none = interval(Sample([[(0, 0), (0, 0)]], [1]))
    assert all(math.isnan(bound) for bound in (none.value, none.low, none.high))
    assert not none.excludes_zero


def test_draws_are_the_same_every_time():
    values = np.random.default_rng(5).normal(0, 1, 30)
    first = sample(values).draws()
    _counts.cache_clear()
    assert (first == sample(values).draws()).all()
    assert sample(values).draws().shape == (DRAWS,)
