"""Token choice for one sequence: a llama.cpp sampler chain with its own random state."""

from __future__ import annotations

import ctypes

import llama_cpp as lib

from backends.sequence import SamplingParams

PENALTY_WINDOW = 256


def _seed32(seed: int) -> int:
    """llama.cpp seeds with 32 bits and reads 0xFFFFFFFF as "random"; fold the rest in and stay off that value."""
    folded = (seed ^ (seed >> 32)) & 0xFFFFFFFF
    return folded if folded != lib.LLAMA_DEFAULT_SEED else 0


class Sampler:
    """Lives as long as its sequence, across preemption, so that a seed gives the same text whatever else runs."""

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self.is_plain_greedy = params.temperature == 0 and not params.logit_bias and not self._has_penalties(params)
        for sampler in self._stages(params, vocab_size):
            lib.llama_sampler_chain_add(self._chain, sampler)

    @staticmethod
    def _has_penalties(params: SamplingParams) -> bool:
        return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0

    def _stages(self, params: SamplingParams, vocab_size: int) -> list[lib.llama_sampler_p]:
        stages: list[lib.llama_sampler_p] = []
        if params.logit_bias:
            pairs = [lib.llama_logit_bias(token, bias) for token, bias in params.logit_bias.items()]
            array = (lib.llama_logit_bias * len(pairs))(*pairs)
            stages.append(lib.llama_sampler_init_logit_bias(vocab_size, len(pairs), array))
        is_greedy = params.temperature == 0
        if params.top_k > 0 and not is_greedy:
            stages.append(lib.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1.0 and not is_greedy:
            stages.append(lib.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0.0 and not is_greedy:
            stages.append(lib.llama_sampler_init_min_p(params.min_p, 1))
        if self._has_penalties(params):
            penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
            stages.append(lib.llama_sampler_init_penalties(PENALTY_WINDOW, *penalties))
        if is_greedy:
            stages.append(lib.llama_sampler_init_greedy())
        else:
            stages += [lib.llama_sampler_init_temp(params.temperature), lib.llama_sampler_init_dist(_seed32(params.seed))]
        return stages

    def sample(self, context: lib.llama_context_p, row: int) -> int:
        """Draw from the logits of batch row `row` and remember the token for the penalties."""
        return int(lib.llama_sampler_sample(self._chain, context, ctypes.c_int32(row)))

    def close(self) -> None:
        """Free the chain."""
        lib.llama_sampler_free(self._chain)
