"""Token choice from logits in NumPy: the same for every backend."""

from collections import Counter
from collections.abc import Sequence as Items

import numpy as np
import numpy.typing as npt

from backends.protocol import StepOutput
from backends.sequence import SamplingParams, Sequence

Vector = npt.NDArray[np.float32]

PENALTY_WINDOW = 256


def choose(seq: Sequence, logits: Vector) -> StepOutput:
    """The next token of `seq`, from the logits [vocab_size] after its last one, with the logprobs it asked for."""
    params = seq.sampling
    token_id = int(logits.argmax()) if params.is_plain_greedy else pick(logits, params, seq.token_ids[seq.num_prompt_tokens :])
    norm = _log_sum_exp(logits)
    return StepOutput(seq, token_id, float(logits[token_id]) - norm, _top(logits, norm, params.num_top_logprobs))


def pick(logits: Vector, params: SamplingParams, written: Items[int]) -> int:
    """The next token, from logits [vocab_size] and the tokens written so far.

    The draw depends on the seed and on how many tokens are written, on nothing else. Candidates stand in the order of their ids, so that
    the last bits of a logit can move a boundary between two tokens a little, but never exchange them.
    """
    if params.logit_bias:
        logits = logits.copy()
        logits[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), np.float32)
    is_greedy = params.temperature == 0
    candidates = np.arange(len(logits)) if is_greedy else _candidates(logits, params)
    values = (_penalized(logits, params, written) if params.has_penalties else logits)[candidates]
    if is_greedy:
        return int(values.argmax())
    weights = np.cumsum(np.exp((values - values.max()) / params.temperature, dtype=np.float64))
    random = np.random.Generator(np.random.Philox(key=params.seed & 0xFFFFFFFFFFFFFFFF, counter=len(written))).random()
    return int(candidates[min(np.searchsorted(weights, random * weights[-1], side="right"), len(candidates) - 1)])


def _candidates(logits: Vector, params: SamplingParams) -> npt.NDArray[np.intp]:
    """Ids that top-k, top-p and min-p leave, ascending."""
    ids = np.arange(len(logits))
    if 0 < params.top_k < len(ids):
        ids = np.argpartition(logits, -params.top_k)[-params.top_k :]
    if params.top_p < 1.0 or params.min_p > 0.0:
        probabilities = np.exp(logits[ids] - logits[ids].max(), dtype=np.float64)
        order = np.argsort(-probabilities, kind="stable")
        ids, probabilities = ids[order], probabilities[order] / probabilities.sum()
        within = np.searchsorted(np.cumsum(probabilities), params.top_p) + 1 if params.top_p < 1.0 else len(ids)
        ids = ids[:within][probabilities[:within] >= params.min_p * probabilities[0]]
    return np.sort(ids)


def _penalized(logits: Vector, params: SamplingParams, written: Items[int]) -> Vector:
    """Repetition penalty of Keskar et al. (2019, CTRL), presence and frequency penalty as OpenAI defines them."""
    logits = logits.copy()
    for token, count in Counter(written[-PENALTY_WINDOW:]).items():
        value = logits[token]
        value = value * params.repetition_penalty if value <= 0 else value / params.repetition_penalty
        logits[token] = value - count * params.frequency_penalty - params.presence_penalty
    return logits


def _log_sum_exp(logits: Vector) -> float:
    peak = logits.max()
    return float(peak + np.log(np.exp(logits - peak).sum()))


def _top(logits: Vector, norm: float, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    best = np.argpartition(-logits, count)[:count]
    best = best[np.argsort(-logits[best], kind="stable")]
    return tuple((int(token), float(logits[token] - norm)) for token in best)
