"""Guessing ahead: what proposes a sequence's next tokens, prompt lookup first of all, and whether that pays on this machine."""

from abc import ABC, abstractmethod

NGRAM = 3
FIRST_GUESS, SHORTEST_GUESS, LONGEST_GUESS = 4, 2, 16
# Beyond this many sequences a pass is wide enough without guesses.
MAX_SEQUENCES = 2
# Before anything was seen: one guess in three comes true (code and quotes do better, prose worse).
EXPECTED_SHARE = 1 / 3
MEMORY = 0.1
PROBE_EVERY = 32


class Guesser(ABC):
    """Proposes what a sequence says next. Whatever it proposes, only the speed depends on it."""

    def __init__(self) -> None:
        self._reach = FIRST_GUESS

    @abstractmethod
    def guess(self, tokens: list[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow `tokens`; empty when nothing is known or the limit is below 1."""

    def learn(self, num_guessed: int, num_kept: int) -> None:
        """Reach further after a guess that came true to its end, less far after one that did not."""
        self._reach = min(LONGEST_GUESS, 2 * self._reach) if num_kept == num_guessed else max(SHORTEST_GUESS, num_kept + 1)


class Lookup(Guesser):
    """Where each n-gram of one sequence was last followed by something."""

    def __init__(self) -> None:
        super().__init__()
        self._followed: dict[tuple[int, ...], int] = {}
        self._num_seen = NGRAM

    def guess(self, tokens: list[int], limit: int) -> list[int]:
        """At most `limit` tokens that followed the last NGRAM tokens when they stood there before; empty when they never did."""
        for at in range(self._num_seen, len(tokens)):
            self._followed[tuple(tokens[at - NGRAM : at])] = at
        self._num_seen = max(NGRAM, len(tokens))
        start = self._followed.get(tuple(tokens[-NGRAM:]), len(tokens))
        return tokens[start : start + max(0, min(self._reach, limit))]


class Gain:
    """A running mean of the seconds that a pass with guesses saves against the plain passes it stands for."""

    def __init__(self, plain_s: float, wide_s: float) -> None:
        """Measured at start: a pass over one row, and one over 1 + FIRST_GUESS rows with what making the guess takes."""
        self._plain_s = [plain_s] * (MAX_SEQUENCES + 1)
        self._saved_s = EXPECTED_SHARE * FIRST_GUESS * plain_s - (wide_s - plain_s)
        self._num_skipped = 0

    def pays(self) -> bool:
        """May the next pass carry guesses? Where they cost time, one in PROBE_EVERY chances is still taken, to see whether that changed."""
        self._num_skipped = 0 if self._saved_s > 0 else self._num_skipped + 1
        return self._num_skipped % PROBE_EVERY == 0

    def saw(self, num_sequences: int, num_guessed: int, num_kept: int, seconds: float, guess_s: float = 0.0) -> None:
        """A decoding pass of `num_sequences` is over, its guess took `guess_s` to make.

        A pass that waited for other work of the machine counts as four at most, a guessed token as two: more can never pay anyway.
        """
        plain_s = self._plain_s[num_sequences]
        seconds = min(seconds, 4 * plain_s) + min(guess_s, 2 * num_guessed * plain_s)
        if num_guessed:
            self._saved_s += MEMORY * (num_kept * plain_s / num_sequences - (seconds - plain_s) - self._saved_s)
        else:
            self._plain_s[num_sequences] += MEMORY * (seconds - plain_s)
