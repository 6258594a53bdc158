"""Sequence: one request inside the engine, from its prompt tokens to its finish."""

from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Protocol

import numpy as np
import numpy.typing as npt


class SequenceStatus(Enum):
    """Where a sequence is. WAITING has no KV; RUNNING owns a place in the backend; FINISHED has left."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"
    ABORT = "abort"
    NO_MEMORY = "no_memory"


class Priority(Enum):
    """ACTIVE has somebody waiting for it; IDLE (a warm-up) runs only when nobody is."""

    ACTIVE = 0
    IDLE = 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. Ranges are checked at the HTTP door; temperature 0 is greedy.

    `grammar` is what the answer must follow (see backends.constraint), empty for none.

    Order of application: grammar, logit bias, top-k, top-p, min-p, penalties, temperature, draw (penalties after the truncating
    samplers, as the QwQ-32B sampling notes ask).
    """

    temperature: float = 0.6
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: dict[int, float] = field(default_factory=dict)
    num_top_logprobs: int = 0
    max_tokens: int = 1024
    grammar: str = ""


@dataclass(frozen=True, slots=True)
class CacheScope:
    """Who may reuse this sequence's KV: the first `public_len` tokens within `public`, the rest only within `private`.

    Both only for the same `adapter`, the registry key of the LoRA weights the sequence is computed with; empty for none.
    """

    public_len: int = 0
    public: str = ""
    private: str = ""
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Thinking:
    """How the thought of this sequence is opened, watched and closed.

    `open_id`/`close_id` are the single tokens of `<think>` and `</think>`; `close_ids` is the text that a forced close inserts
    (it ends the thought and starts the answer); `budget` is the number of thought tokens after which it is inserted. While others
    wait for a place, a budget with a `least` shrinks towards that; one without is kept as it is.
    `starts_open` is True when the prompt itself ends inside a thought, as QwQ's template does.
    """

    open_id: int
    close_id: int
    close_ids: tuple[int, ...]
    starts_open: bool
    budget: int | None = None
    least: int | None = None


class Constraint(Protocol):
    """What a sequence's grammar allows. Only the engine thread asks, and nothing but `is_ready` before that is True."""

    @property
    def is_ready(self) -> bool:
        """Until then the sequence waits."""

    @property
    def is_broken(self) -> bool:
        """Whether the answer was ended in the middle, because the grammar became too complex to follow."""

    def allowed(self, answer: list[int]) -> npt.NDArray[np.bool_]:
        """Which tokens may follow, [vocab_size]; at least one. `answer` must begin with the one that was asked about before."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One request: its tokens so far and how far the backend has computed them.

    `token_ids[:num_computed]` have KV. Whatever lies beyond is computed in the next steps, whether it came from the prompt, from
    sampling or from a forced close; a token is sampled once nothing is left to compute.
    """

    seq_id: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    scope: CacheScope = field(default_factory=CacheScope)
    thinking: Thinking | None = None
    priority: Priority = Priority.ACTIVE
    reuse_output: bool = True
    constraint: Constraint | None = None
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed: int = 0
    num_cached: int = 0
    num_thought: int = 0
    channel_start: int = 0
    in_thought: bool = False
    thought_closed: bool = False
    num_preempted: int = 0

    def __post_init__(self) -> None:
        self.in_thought = self.thinking is not None and self.thinking.starts_open
        self.channel_start = self.num_prompt_tokens

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_channel_tokens(self) -> int:
        """Tokens of the thought, or of the answer once that has begun."""
        return len(self.token_ids) - self.channel_start

    @property
    def may_open_thought(self) -> bool:
        """Nothing is written, and a thought may come before the answer."""
        if self.thinking is None or self.thinking.budget == 0:
            return False
        return not (self.in_thought or self.thought_closed or self.num_completion_tokens)

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def reusable_len(self) -> int:
        """How many leading tokens are worth keeping: a template that drops old thinking never repeats a finished sequence's output."""
        if self.reuse_output or self.status is not SequenceStatus.FINISHED:
            return self.num_computed
        return min(self.num_computed, self.num_prompt_tokens)
