"""Token choice from logits in NumPy: the same for every backend."""

import threading
from collections import Counter
from random import Random

import numpy as np
import numpy.typing as npt

from backends.protocol import StepOutput
from backends.sequence import SamplingParams, Sequence

Vector = npt.NDArray[np.float32]

PENALTY_WINDOW = 256
BLOCK = 512


class _Scratch(threading.local):
    """One vector per thread that is written over and over: a fresh one of a large vocabulary costs more in page faults than in work."""

    def __init__(self) -> None:
        self._vector = np.empty(0, np.float32)

    def take(self, size: int) -> Vector:
        """Return a vector [size] of no particular content; what was taken before is void."""
        if size > len(self._vector):
            self._vector = np.empty(size, np.float32)
        return self._vector[:size]


_SCRATCH = _Scratch()


def choose(seq: Sequence, logits: Vector) -> StepOutput:
    """The next token of `seq`, from the logits [vocab_size] after its last one, with the logprobs it asked for."""
    token_id = pick(_allowed(seq, logits), seq.sampling, seq.token_ids[seq.num_prompt_tokens :])
    peak = logits.max()
    norm = float(peak + np.log(_weights(logits, peak).sum()))
    return StepOutput(seq, token_id, float(logits[token_id]) - norm, _top(logits, norm, seq.sampling.num_top_logprobs))


def pick(logits: Vector, params: SamplingParams, written: list[int]) -> int:
    """The next token, from logits [vocab_size] and the tokens written so far.

    The draw depends on the seed and on how many tokens are written, on nothing else. Candidates stand in the order of their ids, so that
    the last bits of a logit can move a boundary between two tokens a little, but never exchange them.
    """
    if params.logit_bias:
        logits = logits.copy()
        logits[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), np.float32)
    is_greedy = params.temperature == 0
    candidates = None if is_greedy else _candidates(logits, params)
    if (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0):
        logits = _penalized(logits, params, written)
    values = logits if candidates is None else logits[candidates]
    at = int(values.argmax()) if is_greedy else _draw(values, params.temperature, Random(params.seed << 32 | len(written)).random())
    return at if candidates is None else int(candidates[at])


def _allowed(seq: Sequence, logits: Vector) -> Vector:
    """The logits of the tokens that the grammar of `seq` allows. It speaks of the answer: a thought is free."""
    if seq.constraint is None or seq.in_thought:
        return logits
    allowed = seq.constraint.allowed(seq.token_ids[seq.channel_start :])
    if seq.may_open_thought and seq.thinking is not None:
        allowed[seq.thinking.open_id] = True
    return np.where(allowed, logits, np.float32(-np.inf))


def _draw(values: Vector, temperature: float, point: float) -> int:
    """The value above which `point` of [0, 1) falls, once they share it by their softmax."""
    weights = _weights(values, values.max(), temperature)
    num_whole = len(weights) // BLOCK * BLOCK
    blocks = np.append(weights[:num_whole].reshape(-1, BLOCK).sum(axis=1), weights[num_whole:].sum())
    until = np.cumsum(blocks, dtype=np.float64)
    wanted = point * until[-1]
    block = _first_above(until, wanted)
    start, before = block * BLOCK, until[block - 1] if block else 0.0
    return start + _first_above(np.cumsum(weights[start : start + BLOCK], dtype=np.float64), wanted - before)


def _first_above(sums: npt.NDArray[np.float64], wanted: float) -> int:
    """Where the running sums first exceed `wanted`; what rounding put beyond the last counts as just below it, so no share of 0 is met."""
    return int(np.searchsorted(sums, min(wanted, np.nextafter(sums[-1], 0.0)), side="right"))


def _weights(values: Vector, peak: np.float32, temperature: float = 1.0) -> Vector:
    """What the softmax shares by, the largest being 1: valid until the next call."""
    weights = np.subtract(values, peak, out=_SCRATCH.take(len(values)))
    if temperature != 1.0:
        weights /= np.float32(temperature)
    return np.exp(weights, out=weights)


def _candidates(logits: Vector, params: SamplingParams) -> npt.NDArray[np.intp] | None:
    """Ids that top-k, top-p and min-p leave, ascending; None when they leave all."""
    ids = _largest(logits, params.top_k) if 0 < params.top_k < len(logits) else None
    if params.top_p < 1.0 or params.min_p > 0.0:
        values = logits if ids is None else logits[ids]
        left = _likely(_weights(values, values.max()), params)
        ids = left if ids is None else ids[left]
    return None if ids is None else np.sort(ids)


def _largest(logits: Vector, count: int) -> npt.NDArray[np.intp]:
    """Ids of the `count` largest logits, in no order."""
    num_rows = 64
    if count * num_rows > len(logits):
        return np.argpartition(logits, -count)[-count:]
    # Each of the `count` columns with the largest maxima holds one as large as `least`, so nothing below it is among the largest.
    maxima = logits[: len(logits) // num_rows * num_rows].reshape(num_rows, -1).max(axis=0)
    least = maxima[np.argpartition(maxima, -count)[-count]]
    ids = np.flatnonzero(logits >= least)
    return ids[np.argpartition(logits[ids], -count)[-count:]]


def _likely(weights: Vector, params: SamplingParams) -> npt.NDArray[np.intp]:
    """Indices that top-p and min-p leave; the weights are relative to the largest."""
    total = float(weights.sum(dtype=np.float64))
    # All that lies below this share together weighs less than what top-p cuts off, so it need not be sorted.
    order = np.flatnonzero(weights >= (1.0 - params.top_p) * total / len(weights))
    order = order[np.argsort(-weights[order], kind="stable")]
    if params.top_p < 1.0:
        order = order[: np.searchsorted(np.cumsum(weights[order], dtype=np.float64), params.top_p * total) + 1]
    return order[weights[order] >= params.min_p]


def _penalized(logits: Vector, params: SamplingParams, written: list[int]) -> Vector:
    """Repetition penalty of Keskar et al. (2019, CTRL), presence and frequency penalty as OpenAI defines them."""
    logits = logits.copy()
    for token, count in Counter(written[-PENALTY_WINDOW:]).items():
        value = logits[token]
        value = value * params.repetition_penalty if value <= 0 else value / params.repetition_penalty
        logits[token] = value - count * params.frequency_penalty - params.presence_penalty
    return logits


def _top(logits: Vector, norm: float, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    best = np.argpartition(-logits, count)[:count]
    best = best[np.argsort(-logits[best], kind="stable")]
    return tuple((int(token), float(logits[token] - norm)) for token in best)
