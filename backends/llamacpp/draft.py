"""A second, small model of the same vocabulary that guesses ahead for a lone sequence."""

import time
from dataclasses import replace
from itertools import compress, count, zip_longest
from operator import ne

from backends.llamacpp.model import Decoded, DecodeFailed, LlamaModel, Row
from backends.protocol import EngineOptions, ModelLoadError
from backends.speculation import FIRST_GUESS, Gain, Guesser

# So many tokens may be used by one of the two models only.
MAX_MISSING = 64


class Draft(Guesser):
    """The draft model and one context of its own, whose KV follows whichever sequence is asked for.

    `gain` tells whether its guesses pay, its own time counted.
    """

    def __init__(self, options: EngineOptions, target: LlamaModel, plain_s: float, wide_s: float) -> None:
        """Load `options.draft_model` for `target`, whose passes take `plain_s` and `wide_s` (see Gain). Raises ModelLoadError."""
        super().__init__()
        context = target.spec.context_length
        self._model = LlamaModel(replace(options, path=options.draft_model, max_sequences=1, context_length=context, num_kv_tokens=context))
        _check_vocabulary(self._model, target, options)
        self.gain = Gain(plain_s, wide_s + FIRST_GUESS * self._model.time_pass(1))
        self._max_batch = options.batch_tokens
        self._num_shared = min(self._model.vocab_size, target.vocab_size)
        self._held: list[int] = []
        self._spent_s = 0.0

    def guess(self, tokens: list[int], limit: int) -> list[int]:
        """The greedy continuation, up to an end token. Empty, too, while a long text is not read to its end: each call reads one batch."""
        limit = min(limit, self._reach, self._model.spec.context_length - len(tokens))
        if limit < 1:
            return []
        began = time.perf_counter()
        self._follow(tokens)
        self._read(tokens[len(self._held) :][: self._max_batch])
        guess: list[int] = []
        while len(self._held) >= len(tokens):
            guess.append(int(self._model.logits(1)[0, : self._num_shared].argmax()))
            if len(guess) == limit or guess[-1] in self._model.spec.eos_token_ids:
                break
            self._read(guess[-1:])
        self._spent_s += time.perf_counter() - began
        return guess

    def take_spent_s(self) -> float:
        """Seconds that guessing took since the last time this was asked."""
        spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._model.close()

    def _follow(self, tokens: list[int]) -> None:
        """Keep the KV of the common beginning, without the last token: its logits are wanted."""
        length = next(compress(count(), map(ne, self._held, tokens[:-1])), min(len(self._held), len(tokens) - 1))
        del self._held[length:]
        self._model.trim(0, length)

    def _read(self, tokens: list[int]) -> None:
        start, last = len(self._held), len(tokens) - 1
        # A token that the draft does not have is read as its last place.
        rows = [Row(0, min(token_id, self._num_shared - 1), start + i, i == last) for i, token_id in enumerate(tokens)]
        if self._model.decode(rows) is not Decoded.DONE:
            raise DecodeFailed("the draft model's context is full before its end")
        self._held += tokens


def _check_vocabulary(draft: LlamaModel, target: LlamaModel, options: EngineOptions) -> None:
    """Raises ModelLoadError unless every token that both models use is the same.

    Families fill their vocabularies up to different sizes and put later tokens there: QwQ-32B's thinking tags are unused in Qwen2.5-0.5B.
    """
    guessed, spoken = draft.vocabulary(), target.vocabulary()
    num_used, num_wanted = len(guessed) - guessed.count(b""), len(spoken) - spoken.count(b"")
    at = next((i for i, (a, b) in enumerate(zip_longest(guessed, spoken, fillvalue=b"")) if a and b and a != b), None)
    if at is None and abs(num_used - num_wanted) <= MAX_MISSING:
        return
    cause = f"has {num_used:,} tokens instead of {num_wanted:,}" if at is None else f"differs at token {at}"
    draft.close()
    raise ModelLoadError(f"{options.draft_model} cannot guess for {options.path}: its vocabulary {cause}")
