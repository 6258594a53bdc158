"""Text as what it can be found by: stems, pairs of neighbouring stems, runs of letters; sparse vectors of them, in NumPy."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

TOKEN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]|[^\W_\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+")
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")
SUFFIXES = ("ing", "ed", "es", "s", "ly")
# Two stems this near each other are a pair, in whichever order; so "card lost" finds "lost my card".
PAIR_REACH = 8
LETTER_RUNS = range(3, 6)
HAN_RUNS = range(2, 4)
# The root of idf, and three kinds of features of equal weight, did best on Banking77 and CLINC150 (`python -m bench.retrieval`).
IDF_POWER = 0.5
NUM_KINDS = 3
ENGLISH = """
a about am an and any are as at be been but by can could did do does for from get give got had has have hello help hey hi how i if in is
it its just know let like me my need no not of on one or our please should so some tell thank thanks that the their them then there these
they this to up us want was we were what when where which who why will with would yes you your
"""
CHINESE = "的了吗呢吧啊我你您们是有在和就都也这那个不么什怎请想要能可以会好谢问给一下到多少哪里几还没很得着把被让呀哦嗯"
STOP = frozenset((*ENGLISH.split(), *CHINESE))


def stems(text: str) -> list[str]:
    """Words without their commonest endings, lower-case; each Han character is one."""
    return [_stem(token) for token in TOKEN.findall(unicodedata.normalize("NFKC", text).lower())]


def _stem(word: str) -> str:
    for suffix in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)]
    return word


def terms(text: str) -> list[str]:
    """What a text is about: stems that say something, and for Han the pairs of neighbouring characters."""
    found = stems(text)
    said = [stem for stem in found if stem not in STOP and not HAN.match(stem)]
    return said + [a + b for a, b in pairwise(found) if HAN.match(a) and HAN.match(b) and not {a, b} <= STOP]


def _features(text: str) -> Iterable[tuple[int, str]]:
    tokens = TOKEN.findall(unicodedata.normalize("NFKC", text).lower())
    said = [_stem(token) for token in tokens]
    for place, stem in enumerate(said):
        yield 0, stem
        for other in set(said[place + 1 : place + PAIR_REACH]) - {stem}:
            yield 1, f"{min(stem, other)}&{max(stem, other)}"
    line = f" {' '.join(tokens)} "
    if HAN.search(line):
        line = re.sub(r"(?<=[^\x00-\x7f]) (?=[^\x00-\x7f])", "", line)
        yield from ((2, run) for n in HAN_RUNS for run in _runs(line, n) if HAN.search(run))
    yield from ((2, run) for n in LETTER_RUNS for run in _runs(line, n))


def _runs(line: str, n: int) -> Iterable[str]:
    return (line[start : start + n] for start in range(len(line) - n + 1))


class Vectors:
    """One unit vector a text; `dot` says how like a question each text is, `gram` how like each other some of them are."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._known: dict[tuple[int, str], int] = {}
        counted = [Counter(_features(text)) for text in texts]
        known = self._known
        ids = np.array([known.setdefault(feature, len(known)) for features in counted for feature in features], np.int32)
        counts = np.array([count for features in counted for count in features.values()], np.float32)
        kinds = np.array([kind for features in counted for kind, _ in features], np.int32)
        self.size = len(texts)
        self._starts = np.concatenate([[0], np.cumsum([len(features) for features in counted])]).astype(np.int64)
        spread = np.bincount(ids, minlength=len(self._known))
        self._idf: NDArray[np.float32] = (np.log((self.size + 1) / (spread + 0.5)) ** IDF_POWER).astype(np.float32)
        rows = np.repeat(np.arange(self.size, dtype=np.int32), np.diff(self._starts))
        self._ids, self._weights = ids, self._weigh(ids, counts, rows * NUM_KINDS + kinds)
        by_feature = np.argsort(ids, kind="stable")
        self._holders, self._held = rows[by_feature], self._weights[by_feature]
        self._holder_starts = np.concatenate([[0], np.cumsum(spread)])

    def _weigh(self, ids: NDArray[np.int32], counts: NDArray[np.float32], groups: NDArray[np.int32]) -> NDArray[np.float32]:
        weights = (1 + np.log(counts)) * self._idf[ids]
        lengths = np.sqrt(np.bincount(groups, weights**2) * NUM_KINDS) if len(groups) else np.ones(1)
        return (weights / lengths[groups]).astype(np.float32)

    def dot(self, text: str) -> NDArray[np.float64]:
        """The cosine of `text` with each text, [n]; features that no text has do not count."""
        found = Counter(feature for feature in _features(text) if feature in self._known)
        if not found:
            return np.zeros(self.size)
        ids = np.array([self._known[feature] for feature in found], np.int32)
        counts = np.array(list(found.values()), np.float32)
        weights = self._weigh(ids, counts, np.array([kind for kind, _ in found], np.int32))
        spans = [slice(self._holder_starts[i], self._holder_starts[i + 1]) for i in ids]
        holders = np.concatenate([self._holders[span] for span in spans])
        shares = np.concatenate([self._held[span] * weight for span, weight in zip(spans, weights, strict=True)])
        return np.bincount(holders, shares, self.size).astype(np.float64)

    def gram(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Cosines among the texts `rows`, [len(rows), len(rows)]."""
        spans = [slice(self._starts[row], self._starts[row + 1]) for row in rows]
        ids = np.concatenate([self._ids[span] for span in spans])
        weights = np.concatenate([self._weights[span] for span in spans])
        owners = np.repeat(np.arange(len(rows)), [span.stop - span.start for span in spans])
        _, places, counts = np.unique(ids, return_inverse=True, return_counts=True)
        # What one text alone has adds to its own length only, and that is 1.
        shared = counts > 1
        kept = shared[places]
        dense = np.zeros((len(rows), int(shared.sum())), np.float32)
        dense[owners[kept], (np.cumsum(shared) - 1)[places[kept]]] = weights[kept]
        cosines = dense @ dense.T
        np.fill_diagonal(cosines, 1)
        return cosines
