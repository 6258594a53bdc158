"""Retrieval: which passages speak to a question, and whether any does. On the CPU, the same for every database."""

import copy
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from feedback.grams import STOP, Vectors, stems, terms
from feedback.sentences import sentences

# How many of the nearest texts decide, and how much each is doubted: kernel ridge regression over them. Chosen on Banking77 and CLINC150.
NUM_NEIGHBOURS = 150
DOUBT = 0.5
# A passage with so many example questions is found by them alone, one with fewer also by its sentences.
ENOUGH_QUESTIONS = 3
K1, B = 1.2, 0.5  # Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework"
# Raw scores grow with the number of a passage's example questions, so the bar does too: where four of five of CLINC150's out-of-scope
# questions stay below, with 1, 3, 10 and 100 examples an intent. Without examples words must do: a low bar, and the model decides.
BAR, BAR_PER_TENFOLD, BAR_WITHOUT = 0.117, 0.082, 0.10
UNKNOWN_WEIGHT, UNKNOWN_WITHOUT = 0.25, 0.10
# Scores are divided by the bar: from here on a passage fits.
FITS = 1.0
# Vectors lift the scores of strangers too. The bar over both is so much higher, by the same measure with 1, 3, 10 and 30 examples an intent
# and the vectors of all-MiniLM-L6-v2.
EMBEDDING_SHARE, EMBEDDED_BAR = 0.5, 1.2


Rows = NDArray[np.float32]


class Findable(Protocol):
    """What a passage is found by."""

    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def questions(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Hit:
    """`number` is the passage's place in the index, from 0; its `score` may be negative."""

    number: int
    score: float


@dataclass(frozen=True, slots=True)
class Found:
    """Passages, best first. When the best scores below FITS, nothing fits."""

    hits: tuple[Hit, ...]

    @property
    def fits(self) -> bool:
        return bool(self.hits) and self.hits[0].score >= FITS


class Index:
    """Passages in memory, built once and never changed.

    Every passage stands in it as several short texts: its title, the questions it answers, its sentences. A question's nearest texts
    vote by kernel ridge regression fitted to them alone, so near-duplicates share one vote and nothing is trained ahead; BM25 joins in
    for passages without questions. Where an embedding model's vectors are known, their cosines and the lexical ones are averaged.
    """

    def __init__(self, passages: Sequence[Findable]) -> None:
        entries = [(number, text) for number, passage in enumerate(passages) for text in _entries(passage)]
        self.texts = texts = tuple(text for _, text in entries)
        self._size = len(passages)
        self._asked = np.array([len(passage.questions) for passage in passages])
        self._owners = np.array([number for number, _ in entries], np.int64)
        self._vectors = Vectors(texts)
        self._words = _Words(passages)
        self._embedded: Rows = np.zeros((0, 0), np.float32)
        self._common = self._embedded
        self._stems = frozenset(stem for text in texts for stem in stems(text)) | self._words.stems

    def embedded(self, rows: Rows) -> Self:
        """This index, with an embedding model's vectors of its `texts`: rows of length 1, [len(texts), d].

        What they have in common is taken away: a model's vectors lean one way, so that even strangers are alike (Mu and Viswanath 2018,
        "All-but-the-Top").
        """
        known = copy.copy(self)
        known._common = rows.mean(0)
        known._embedded = _unit(rows - known._common)
        return known

    @property
    def is_embedded(self) -> bool:
        return len(self._embedded) > 0

    def search(self, question: str, limit: int = 5, vector: Rows | None = None) -> Found:
        """The `limit` passages that speak to the question best."""
        scores = self.scores(question, vector)
        order = np.argsort(-scores, kind="stable")[:limit]
        return Found(tuple(Hit(int(number), float(scores[number])) for number in order))

    def scores(self, question: str, vector: Rows | None = None) -> NDArray[np.float64]:
        """Every passage's score, [n]. Those that share nothing with the question have the same.

        `vector` is the question's, of length 1, [d]. Without it, or in an index that is not embedded, words alone decide.
        """
        if not self._size:
            return np.zeros(0)
        meaning = _unit(vector - self._common) if vector is not None and self.is_embedded else None
        # To an embedding model no word is unknown.
        unknown = self._unknown(question) if meaning is None else 0.0
        doubts = np.where(self._asked > 0, UNKNOWN_WEIGHT, UNKNOWN_WITHOUT) * unknown
        raw = self._votes(question, meaning) + self._words.shares(question) - doubts
        bars = np.where(self._asked > 0, BAR + BAR_PER_TENFOLD * np.log10(np.maximum(self._asked, 1)), BAR_WITHOUT)
        return (raw / (bars if meaning is None else bars * EMBEDDED_BAR)).round(4)

    def _votes(self, question: str, meaning: Rows | None) -> NDArray[np.float64]:
        """What the nearest texts say for each passage, [n]."""
        likeness = self._vectors.dot(question)
        if meaning is not None:
            likeness = (1 - EMBEDDING_SHARE) * likeness + EMBEDDING_SHARE * (self._embedded @ meaning)
        near = np.argsort(-likeness, kind="stable")[:NUM_NEIGHBOURS]
        near = near[likeness[near] > 0]
        if not len(near):
            return np.zeros(self._size)
        kernel = self._vectors.gram(near).astype(np.float64)
        if meaning is not None:
            kernel = (1 - EMBEDDING_SHARE) * kernel + EMBEDDING_SHARE * (self._embedded[near] @ self._embedded[near].T)
        shares = np.linalg.solve(kernel + DOUBT * np.eye(len(near)), likeness[near])
        return np.bincount(self._owners[near], shares, self._size).astype(np.float64)

    def _unknown(self, question: str) -> float:
        """The share of the question's telling words that no text here has."""
        asked = set(stems(question))
        asked = asked - STOP or asked
        return len(asked - self._stems) / len(asked) if asked else 1.0


def _entries(passage: Findable) -> list[str]:
    said = [] if len(passage.questions) >= ENOUGH_QUESTIONS else sentences(passage.text)
    return list(dict.fromkeys((passage.title, *passage.questions, *said)))


def _unit(rows: Rows) -> Rows:
    lengths: Rows = np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.float32(1e-6))
    return np.divide(rows, lengths, dtype=np.float32)


class _Words:
    """BM25 over the passages' own words, as a share of the most that a question could score."""

    def __init__(self, passages: Sequence[Findable]) -> None:
        self._size = len(passages)
        self._holders: dict[str, list[tuple[int, int]]] = defaultdict(list)
        lengths = np.ones(self._size)
        for number, passage in enumerate(passages):
            found = Counter(terms(f"{passage.title}\n{passage.text}")) if not passage.questions else Counter[str]()
            lengths[number] += found.total()
            for term, count in found.items():
                self._holders[term].append((number, count))
        self._damping = K1 * (1 - B + B * lengths / lengths.mean()) if self._size else lengths
        self.stems = frozenset(stem for passage in passages for stem in stems(passage.text))

    def shares(self, question: str) -> NDArray[np.float64]:
        """One number from 0 to 1 for each passage, [n]."""
        scores, most = np.zeros(self._size), 0.0
        for term in set(terms(question)):
            holders = self._holders.get(term, [])
            idf = float(np.log(1 + (self._size - len(holders) + 0.5) / (len(holders) + 0.5)))
            most += idf * (K1 + 1)
            for number, count in holders:
                scores[number] += idf * count * (K1 + 1) / (count + self._damping[number])
        return scores / most if most else scores
