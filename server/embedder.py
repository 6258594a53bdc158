"""The embedder as the desk and `/v1/embeddings` see it: texts in, vectors out, from an engine process of its own."""

import asyncio
import logging
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from backends.protocol import EngineError, EngineOptions, Tokenizer
from backends.registry import make_tokenizer
from backends.sequence import SamplingParams
from backends.supervisor import Supervisor

# Of all who ask for several texts at once, so many are in the engine together: a question waits for no more than these.
BATCH_TEXTS = 16
# A customer waits no longer for a question's vector.
QUESTION_TIMEOUT_S = 1.0
BATCH_TIMEOUT_S = 30.0
ONE = SamplingParams(max_tokens=1)
log = logging.getLogger("kefu.embedder")

Rows = NDArray[np.float32]


class Embedder:
    """One embedding model, whose vectors have length 1; `asks` is what it wants to read before a question."""

    def __init__(self, options: EngineOptions, asks: str = "") -> None:
        self.supervisor = Supervisor(options)
        self.client = self.supervisor.client
        self.name = options.name
        self._path = options.path
        self.asks = asks
        self._known: dict[str, Rows] = {}
        self._turn = asyncio.Lock()
        self._reason = ""

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return make_tokenizer(self._path)

    async def embed(self, texts: Sequence[str], at_most: int | None = None) -> tuple[Rows, int]:
        """Their vectors, [n, d], and how many tokens they have, of each no more than `at_most`.

        Raises ContextTooLong, EngineDown, EngineBusy or EngineDied.
        """
        rows, tokens = list[Rows](), await asyncio.to_thread(self._encode, texts, at_most)
        for start in range(0, len(tokens), BATCH_TEXTS):
            async with self._turn:
                rows += await asyncio.gather(*map(self._vector, tokens[start : start + BATCH_TEXTS]))
        return np.array(rows), sum(map(len, tokens))

    async def of_texts(self, texts: Sequence[str]) -> Rows | None:
        """Vectors of passages, [n, d], cut where the context ends, each computed once while it is asked for; None without an engine."""
        unknown = [text for text in dict.fromkeys(texts) if text not in self._known]
        try:
            for start in range(0, len(unknown), BATCH_TEXTS):
                batch = unknown[start : start + BATCH_TEXTS]
                rows, _ = await self.embed(batch, self.client.spec.context_length - 1)
                self._known |= zip(batch, rows, strict=True)
        except EngineError as error:
            self._tell(str(error))
            return None
        self._known = {text: self._known[text] for text in texts}
        return np.stack([self._known[text] for text in texts])

    async def of_questions(self, questions: Sequence[str]) -> Rows | None:
        """Their vectors, [n, d], for whoever has time; None where there are none in BATCH_TIMEOUT_S."""
        try:
            async with asyncio.timeout(BATCH_TIMEOUT_S):
                return (await self.embed([self.asks + each for each in questions], self.client.spec.context_length - 1))[0]
        except (TimeoutError, EngineError):
            return None

    async def of_question(self, question: str) -> Rows | None:
        """Its vector, [d], or None where there is none in time."""
        try:
            async with asyncio.timeout(QUESTION_TIMEOUT_S):
                [tokens] = await asyncio.to_thread(self._encode, [self.asks + question], self.client.spec.context_length - 1)
                vector = await self._vector(tokens)
        except (TimeoutError, EngineError) as error:
            self._tell(str(error) or f"no vector within {QUESTION_TIMEOUT_S:g} s")
            return None
        self._tell("")
        return vector

    def _tell(self, reason: str) -> None:
        """Say once why words must do, and once that they need not."""
        if reason != self._reason:
            log.warning("questions are looked up by %s", f"their words alone: {reason}" if reason else "their meaning again")
        self._reason = reason

    def _encode(self, texts: Sequence[str], at_most: int | None) -> list[list[int]]:
        """A model file's vocabulary is read here only once an engine has survived loading it: `spec` raises before."""
        assert self.client.spec
        return [self._tokenizer.encode(text, special=False)[:at_most] or [0] for text in texts]

    async def _vector(self, tokens: list[int]) -> Rows:
        async with self.client.submit(tokens, ONE) as stream:
            return np.frombuffer(b"".join([event.vector async for events in stream for event in events]), np.float32)
