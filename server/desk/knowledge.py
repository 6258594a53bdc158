"""What an answer may rest on: the whole knowledge while it is small, else the passages that fit this conversation's questions."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from backends.mini.shop import Language, Shop, load_shop
from backends.mini.shop import Passage as ShopPassage
from feedback.knowledge import Knowledge, Passage
from feedback.record import Retrieved
from feedback.retrieval import FITS, Index
from server.desk.policy import Policies, Policy
from server.desk.policy_file import Terms
from server.embedder import Embedder
from server.language import detect_language

NUM_RETRIEVED = 5
# kefu-mini has read up to ten passages in a prompt; `[12]` is the longest citation that the page shows.
MAX_SHOWN = 10
MAX_PINNED = 99
# Where nothing fits, so many of the nearest stand there, for it has never read fewer: it offers a person when they do not answer.
NUM_WITHOUT_FIT = 3
MAX_CONVERSATIONS = 1000
RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model is given for one answer: its system message, and the passages there, best first."""

    policy: Policy
    seen: tuple[Retrieved, ...] = ()


@dataclass(frozen=True, slots=True)
class _Shelf:
    """One language's passages. `pinned` is the policy that holds them all, where that is small enough."""

    passages: tuple[Passage, ...]
    index: Index
    version: str
    pinned: Policy | None = None


class DeskKnowledge:
    """Knowledge as the desk reads it. An import is noticed before the next answer; while none was made, the demo shop's passages stand.

    With `embedder`, `run` gives the passages their vectors behind the answers; until it has, they are found by their words.
    """

    def __init__(
        self, store: Knowledge, shops: dict[Language, Shop], pinned_tokens: int, terms: Mapping[Language, Terms] | None = None
    ) -> None:
        self._store = store
        self._shops = shops
        self._pinned_tokens = pinned_tokens
        self.terms = terms or {}
        self._state: tuple[int, int] | None = None
        self._count_tokens: Callable[[str], int] = len  # too many, until a model is loaded
        self._shelves: dict[Language, _Shelf] = {}
        self._shown: dict[str, tuple[int, ...]] = {}
        self._changing = asyncio.Lock()
        self.embedder: Embedder | None = None
        self._has_news = asyncio.Event()

    async def refresh(self, count_tokens: Callable[[str], int]) -> Policies:
        """Read what was imported since, and return the policy that every conversation begins with. Raises RecordUnavailable."""
        self._count_tokens = count_tokens
        async with self._changing:
            state = await self._store.state()
            if state != self._state:
                passages = await self._store.passages()
                shelves = {language: await asyncio.to_thread(self._shelve, passages, language) for language in self._shops}
                self._shelves = {language: self._pin(language, shelf, count_tokens) for language, shelf in shelves.items()}
                self._state = state
                self._has_news.set()
        return {language: shelf.pinned or self._policy(language, shelf, ()) for language, shelf in self._shelves.items()}

    async def run(self) -> None:
        """Embed what is known, and again whenever that changes, for as long as the server runs."""
        while self.embedder is not None:
            await self._has_news.wait()
            self._has_news.clear()
            shelves = dict(self._shelves)
            rows = await self.embedder.of_texts([text for shelf in shelves.values() for text in shelf.index.texts])
            if rows is None:
                await asyncio.sleep(RETRY_S)
                self._has_news.set()
                continue
            for language, shelf in shelves.items():
                index, rows = shelf.index.embedded(rows[: len(shelf.index.texts)]), rows[len(shelf.index.texts) :]
                if self._shelves[language] is shelf:
                    self._shelves[language] = replace(shelf, index=index)

    async def read(self, conversation_id: str, language: Language, questions: Sequence[str]) -> Reading:
        """What to answer the last of `questions` from; the ones before it help where it alone finds nothing.

        Within a conversation passages only join, so that the numbers of earlier citations and the computed prefix stay good.
        """
        shelf = self._shelves[language]
        scores = await self._scores(shelf, questions[-1])
        if shelf.pinned is not None:
            return Reading(shelf.pinned, _seen(shelf, range(len(shelf.passages)), scores))
        fitting = _fitting(scores)
        if not fitting and len(questions) > 1:
            fitting = _fitting(await self._scores(shelf, "\n".join(questions[-2:])))
        key = f"{conversation_id} {shelf.version}"
        if not fitting and key not in self._shown:
            fitting = tuple(sorted(int(number) for number in np.argsort(-scores, kind="stable")[:NUM_WITHOUT_FIT]))
        shown = self._join(key, fitting)
        return Reading(self._policy(language, shelf, shown), _seen(shelf, shown, scores))

    async def look(self, question: str, limit: int) -> list[tuple[Passage, float]]:
        """What a question finds in the knowledge as it is now, best first, with its scores."""
        shelf = await self._now(detect_language(question, "en"))
        scores = await self._scores(shelf, question)
        return [(shelf.passages[number], float(scores[number])) for number in np.argsort(-scores, kind="stable")[:limit]]

    async def preview(self, language: Language, question: str, terms: Terms) -> Policy:
        """What the model would be given for a conversation's only question under these terms."""
        shelf = await self._now(language)
        fitting = _fitting(await self._scores(shelf, question))
        numbers = fitting if shelf.pinned is None else range(len(shelf.passages))
        return self._policy(language, shelf, numbers, terms)

    def use(self, terms: Mapping[Language, Terms]) -> None:
        """From now on, greet and answer under these terms."""
        self.terms, self._state = terms, None
        for language, shop in self._shops.items():
            self._shops[language] = replace(shop, greeting=terms[language].greeting(load_shop(language).greeting))

    async def _scores(self, shelf: _Shelf, question: str) -> NDArray[np.float64]:
        vector = await self.embedder.of_question(question) if self.embedder and shelf.index.is_embedded else None
        return await asyncio.to_thread(shelf.index.scores, question, vector)

    async def _now(self, language: Language) -> _Shelf:
        """The shelf, or a newer one where something was imported that no answer has needed yet."""
        if language in self._shelves and await self._store.state() == self._state:
            return self._shelves[language]
        return self._pin(language, await asyncio.to_thread(self._shelve, await self._store.passages(), language), self._count_tokens)

    def _join(self, key: str, fitting: tuple[int, ...]) -> tuple[int, ...]:
        shown = self._shown.pop(key, ())
        new = tuple(number for number in fitting if number not in shown)
        shown = shown + new if len(shown) + len(new) <= MAX_SHOWN else fitting
        self._shown[key] = shown
        if len(self._shown) > MAX_CONVERSATIONS:
            del self._shown[next(iter(self._shown))]
        return shown

    def _shelve(self, known: Sequence[Passage], language: Language) -> _Shelf:
        """The passages in the customer's language; all of them when there are none; the demo shop's when nothing was imported."""
        shop = self._shops[language]
        passages = tuple(one for one in known if one.language == language) or tuple(known)
        if not passages:
            passages = tuple(Passage(one.id, one.title, one.text, (), language, _sha256(one.title, one.text)) for one in shop.passages)
        version = _sha256(*(f"{one.id} {one.version}" for one in passages))
        return _Shelf(passages, Index(passages), version)

    def _pin(self, language: Language, shelf: _Shelf, count_tokens: Callable[[str], int]) -> _Shelf:
        if len(shelf.passages) > MAX_PINNED:
            return shelf
        pinned = self._policy(language, shelf, range(len(shelf.passages)))
        return replace(shelf, pinned=pinned) if count_tokens(pinned.system) <= self._pinned_tokens else shelf

    def _policy(self, language: Language, shelf: _Shelf, numbers: Sequence[int], terms: Terms | None = None) -> Policy:
        chosen = tuple(ShopPassage(one.id, one.title, one.text) for one in (shelf.passages[number] for number in numbers))
        policy = Policy.of(replace(self._shops[language], passages=chosen), language, terms or self.terms.get(language))
        return replace(policy, knowledge_version=shelf.version)


def _fitting(scores: NDArray[np.float64]) -> tuple[int, ...]:
    """The best passages in the knowledge's own order, so that like questions make like prompts; none when the best does not fit."""
    best = [int(number) for number in np.argsort(-scores, kind="stable")[:NUM_RETRIEVED] if scores[number] > 0]
    return tuple(sorted(best)) if best and scores[best[0]] >= FITS else ()


def _seen(shelf: _Shelf, numbers: Sequence[int], scores: NDArray[np.float64]) -> tuple[Retrieved, ...]:
    ranked = sorted(numbers, key=lambda number: -scores[number])
    return tuple(Retrieved(shelf.passages[number].id, shelf.passages[number].version, float(scores[number])) for number in ranked)


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
