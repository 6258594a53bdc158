"""Numbers that are published elsewhere, and what an interval must do."""

import numpy as np
import pytest

from feedback.statistics import detectable, paired_difference, wilson


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20.
    for hits, num, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(hits, num) == pytest.approx((low, high), abs=2e-4)
    assert wilson(0, 0) == (0, 1)


def test_a_bootstrap_interval_covers_what_is_true_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        before = random.random(100) < 0.4
        after = np.where(random.random(100) < 0.3, random.random(100) < 0.7, before)
        low, high = paired_difference(before.tolist(), after.tolist())
        covered += low <= 0.3 * (0.7 - 0.4) <= high
    assert covered >= 52


def test_more_questions_show_smaller_differences() -> None:
    assert detectable(100) == pytest.approx(0.153, abs=0.002)
    assert detectable(400) == pytest.approx(detectable(100) / 2)
    assert detectable(1) == 1
