"""Token choice against the definitions it follows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.sampling import BLOCK, _draw, _largest, pick
from backends.sequence import SamplingParams

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))


def _drawn(params: SamplingParams, written: int = 4000) -> dict[int, float]:
    draws = [pick(LOGITS, params, [9] * n) for n in range(written)]
    return {token: draws.count(token) / written for token in sorted(set(draws))}


def test_draws_follow_the_distribution_and_the_temperature() -> None:
    assert _drawn(SamplingParams(temperature=1.0, seed=1)) == pytest.approx(dict(enumerate(np.exp(LOGITS))), abs=0.03)
    squared = np.exp(LOGITS) ** 2
    assert _drawn(SamplingParams(temperature=0.5, seed=2)) == pytest.approx(dict(enumerate(squared / squared.sum())), abs=0.03)


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1), st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.5, 0.99]))
def test_a_draw_is_where_the_running_sum_passes_its_point(size: int, seed: int, point: float, forbidden: float) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 4, size).astype(np.float32)
    logits[random.random(size) < forbidden] = -np.inf
    logits[random.integers(size)] = 1.0
    shares = np.exp(logits.astype(np.float64) - logits.max())
    sums = np.cumsum(shares) / shares.sum()
    token = _draw(logits, 1.0, point)
    assert shares[token] > 0, "what is forbidden is never drawn"
    assert (sums[token - 1] if token else 0.0) - 1e-5 <= point <= sums[token] + 1e-5


def test_what_rounding_puts_beyond_the_end_is_still_allowed() -> None:
    logits = np.full(4 * BLOCK, -np.inf, np.float32)
    logits[[3, 700]] = 0.0
    assert _draw(logits, 1.0, np.nextafter(1.0, 0.0)) == 700 and _draw(logits, 1.0, 0.0) == 3


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_p": 0.5}, {1, 3}),
        ({"top_p": 0.39}, {1}),
        ({"min_p": 0.45}, {1, 3, 4}),
        ({"top_k": 3, "top_p": 0.6}, {1, 3}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"logit_bias": {1: -100.0}}, {0, 2, 3, 4}),
    ],
)
def test_truncation_leaves_the_likeliest(fields: dict[str, object], left: set[int]) -> None:
    assert set(_drawn(SamplingParams(temperature=1.0, seed=3, **fields), 300)) == left  # type: ignore[arg-type]


@given(st.integers(0, 2**64 - 1), st.integers(0, 50))
def test_a_draw_depends_on_seed_and_position_alone(seed: int, position: int) -> None:
    params = SamplingParams(temperature=1.0, top_k=4, seed=seed)
    assert pick(LOGITS.copy(), params, list(range(position))) == pick(LOGITS, params, [0] * position)


def test_the_last_bits_of_two_equal_logits_do_not_exchange_their_tokens() -> None:
    close = np.array([1.0, 1.0, 0.5], np.float32)
    up, down = np.nextafter(close, 9, dtype=np.float32), np.nextafter(close, -9, dtype=np.float32)
    first, second = np.where([1, 0, 0], up, down), np.where([0, 1, 0], up, down)
    params = [SamplingParams(temperature=1.0, top_p=0.9, seed=seed) for seed in range(300)]
    assert [pick(first, each, []) for each in params] == [pick(second, each, []) for each in params]
    assert len({pick(first, each, []) for each in params}) == 3


def test_penalties_are_those_of_their_definitions() -> None:
    flat = np.array([2.0, 1.9, -1.0], np.float32)
    assert pick(flat, SamplingParams(temperature=0.0, presence_penalty=0.2), [0]) == 1
    assert pick(flat, SamplingParams(temperature=0.0, presence_penalty=0.05), [0, 0, 0]) == 0
    assert pick(flat, SamplingParams(temperature=0.0, frequency_penalty=0.05), [0, 0, 0]) == 1
    assert pick(flat, SamplingParams(temperature=0.0, repetition_penalty=1.1), [0]) == 1
    assert pick(-flat, SamplingParams(temperature=0.0, repetition_penalty=9.0), [1, 1]) == 2
    assert pick(flat, SamplingParams(temperature=0.0, presence_penalty=9.0), [0] + [1] * 300) == 0, "only the last 256 tokens count"


@given(st.integers(1, 60), st.integers(1, 6000), st.integers(0, 2**32 - 1), st.sampled_from([1, 50]))
def test_the_largest_are_found_without_sorting_the_vocabulary(count: int, size: int, seed: int, spread: int) -> None:
    """Also among equals, and where a grammar has forbidden most."""
    logits = np.random.default_rng(seed).integers(-spread, spread, size).astype(np.float32)
    logits[: size // 3] = -np.inf
    count = min(count, size)
    found = _largest(logits, count)
    assert len(set(found.tolist())) == count
    assert sorted(logits[found]) == sorted(logits)[-count:]
