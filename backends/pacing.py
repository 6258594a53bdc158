"""How one forward pass is divided among running sequences, and how large it may be on this machine."""

from collections.abc import Iterable

from backends.sequence import Sequence

# While somebody's answer is being written, a forward pass should not take longer than this, whoever else has a prompt to compute.
STEP_TARGET_S = 0.5
MIN_CHUNK = 32
# Waiting for another sequence's prefill pays only when it saves more than this many tokens.
MIN_SHARED_WAIT = 24
# Each running sequence is left this much room to grow before another one may start.
HEADROOM_TOKENS = 32


class Pace:
    """Plans passes of at most `max_tokens` tokens and learns how many fit STEP_TARGET_S."""

    def __init__(self, max_tokens: int) -> None:
        self._chunk = self._max = max_tokens

    def plan(self, sequences: Iterable[Sequence], adapter: str = "") -> list[tuple[Sequence, int]]:
        """Everybody who decodes gets all their few tokens; the rest of the chunk is shared evenly among the prompts, short ones first."""
        pending = sorted((seq for seq in sequences if seq.num_uncomputed), key=lambda seq: seq.num_uncomputed)
        someone_decodes = any(seq.num_computed >= seq.num_prompt_tokens for seq in pending)
        pending = [seq for seq in pending if seq.scope.adapter == adapter]
        left = self._chunk + len(pending) if someone_decodes else self._max
        chunks: list[tuple[Sequence, int]] = []
        for i, seq in enumerate(pending):
            share = max(1, left // (len(pending) - i))
            n = min(seq.num_uncomputed, share, self._max - sum(m for _, m in chunks))
            if n > 0:
                chunks.append((seq, n))
                left = max(0, left - n)
        return chunks

    def learn(self, num_tokens: int, seconds: float) -> None:
        """A pass over `num_tokens` took `seconds`: aim the next ones at STEP_TARGET_S."""
        if num_tokens >= MIN_CHUNK and seconds > 0:
            wanted = int(num_tokens / seconds * STEP_TARGET_S)
            self._chunk = max(MIN_CHUNK, min(self._max, (self._chunk + wanted) // 2))
