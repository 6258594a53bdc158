"""Likeness of two questions, in English and Chinese: one word for each thing, what they share, and how they differ."""

import json
import re
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from feedback.grams import HAN, TOKEN

WORDS = Path(__file__).with_name("rephrase.toml")
WEIGHTS = WORDS.with_suffix(".json")
MAX_CHARS = 400
# So many deviations from strangers are one unit.
STRANGE = 4
Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Words:
    """A text with one word for each thing."""

    line: str
    plain: tuple[str, ...]
    tokens: tuple[str, ...]
    telling: frozenset[str]
    grams: frozenset[str]
    asks: frozenset[str]
    codes: frozenset[str]
    negated: bool


class _Lexicon:
    """rephrase.toml, ready for use."""

    def __init__(self) -> None:
        told = tomllib.loads(WORDS.read_text(encoding="utf-8"))
        zh = {word: line.split()[0] for line in told["same"]["zh"] for word in line.split()}
        self.en = {word: line.split()[0] for line in told["same"]["en"] for word in line.split()}
        self.zh = zh
        self.han = re.compile("|".join(sorted(map(re.escape, zh), key=len, reverse=True)))
        self.empty = frozenset((*told["empty"]["zh"].split(), *told["empty"]["en"].split()))
        self.asks = {name: _pattern(text) for name, text in told["asks"].items()}
        self.cues = {name: _pattern(text) for name, text in {**told["cues"], **told["acts"]}.items()}
        self.judge: dict[str, str] = told["judge"]
        self.strangers: dict[str, list[str]] = told["strangers"]
        self.opposites = [tuple(pair.strip().split()) for line in told["opposite"]["pairs"] for pair in line.split(",")]


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile("".join(text.split("\n")), re.IGNORECASE)


@cache
def lexicon() -> _Lexicon:
    return _Lexicon()


NEGATION = re.compile(r"\b(?:not|no|never|cannot|\w+n'?t)\b|[不没无非未别]")
CODE = re.compile(r"[a-z]*\d[a-z\d.]*|[一二两三四五六七八九十百]+(?=[个天号元块月年公次折期级])")


def plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text[:MAX_CHARS]).lower().replace("\u2019", "'").split())


@lru_cache(4096)
def read(text: str) -> Words:
    known, line = lexicon(), plain(text)
    said = known.han.sub(lambda found: known.zh[found[0]], line)
    tokens = tuple(_stem(known.en.get(token, token)) for token in TOKEN.findall(said))
    telling = frozenset(token for token in tokens if token not in known.empty)
    runs = f" {' '.join(tokens)} " if not HAN.search(said) else "".join(tokens)
    asks = frozenset(name for name, pattern in known.asks.items() if pattern.search(said))
    grams = frozenset(a + b for a, b in pairwise(runs))
    codes, negated = frozenset(CODE.findall(said)), NEGATION.search(line) is not None
    return Words(line, tuple(TOKEN.findall(line)), tokens, telling, grams, asks, codes, negated)


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and word.isascii():
            return word[: -len(ending)]
    return word


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 0.0


def _frame(a: Words, b: Words) -> float:
    """How much of two texts is one frame around different things, "how do I pay X" and "how do I pay Y"; 0 when nothing telling differs."""
    size = min(len(a.tokens), len(b.tokens))
    start = next((place for place in range(size) if a.tokens[place] != b.tokens[place]), size)
    end = next((place for place in range(size - start) if a.tokens[-1 - place] != b.tokens[-1 - place]), size - start)
    middles = [set(words.tokens[start : len(words.tokens) - end]) & words.telling for words in (a, b)]
    return (start + end) / max(len(a.tokens), len(b.tokens)) if all(middles) else 0.0


def _has_opposites(a: Words, b: Words) -> bool:
    def has(words: Words, term: str) -> bool:
        return term in words.plain if term.isascii() else term in words.line

    def part(here: str, there: str) -> bool:
        return has(a, here) and has(b, there) and not has(a, there) and not has(b, here)

    return any(part(one, other) or part(other, one) for one, other in lexicon().opposites)


_NAMES = """
one tokens telling grams contained cosine replaced added codes negation asks_other asks_same opposite length nothing_shared equal
frame
"""
PAIR_FEATURES = tuple(_NAMES.split())


def pair_features(first: str, second: str, meaning: float | None = None) -> NDArray[np.float64]:
    """How two questions compare, [len(PAIR_FEATURES)], one more with `meaning`."""
    a, b = read(first), read(second)
    shared = a.telling & b.telling
    only_a, only_b = len(a.telling - b.telling), len(b.telling - a.telling)
    most, least = max(len(a.telling), len(b.telling), 1), max(min(len(a.telling), len(b.telling)), 1)
    all_a, all_b = frozenset(a.tokens), frozenset(b.tokens)
    overlap = len(shared) + 0.2 * len((all_a & all_b) - shared)
    sizes = [len(words.telling) + 0.2 * (len(frozenset(words.tokens)) - len(words.telling)) for words in (a, b)]
    words = (_jaccard(all_a, all_b), _jaccard(a.telling, b.telling), _jaccard(a.grams, b.grams), len(shared) / least)
    cosine = overlap / max(np.sqrt(sizes[0] * sizes[1]), 0.2)
    changed = (
        min(only_a, only_b) / most,
        abs(only_a - only_b) / most,
        a.codes != b.codes and bool(a.codes and b.codes),
        a.negated != b.negated,
    )
    asks = (bool(a.asks and b.asks) and not a.asks & b.asks, bool(a.asks & b.asks), _has_opposites(a, b))
    length = min(len(a.tokens), len(b.tokens)) / max(len(a.tokens), len(b.tokens), 1)
    whole = (length, not shared, a.plain == b.plain, _frame(a, b))
    return np.array((1, *words, cosine, *changed, *asks, *whole, *([] if meaning is None else [meaning])), float)


@cache
def weights() -> dict[str, NDArray[np.float64]]:
    """The weights in force, by model: `en` and `zh` for pairs of questions, `turn`; the same for where there is an embedding model."""
    return {name: np.array(values) for name, values in json.loads(WEIGHTS.read_text(encoding="utf-8"))["weights"].items()}


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def script_of(*texts: str) -> str:
    return "zh" if all(HAN.search(text) for text in texts) else "en"


def compare(first: str, second: str, meaning: float | None = None) -> tuple[NDArray[np.float64], float]:
    """The features of two questions, and the log-odds that they are one; `meaning` is how alike `Meanings` finds them."""
    features, script = pair_features(first, second, meaning), script_of(first, second)
    return features, float(features @ weights()[script if meaning is None else f"{script}_meaning"])


def same_question(first: str, second: str, meaning: float | None = None) -> float:
    """The probability that two texts ask the same."""
    return sigmoid(compare(first, second, meaning)[1])


class Meanings:
    """How alike texts are to an embedding model, in the measure of its strangers, which makes the figures of any two models comparable.

    A cosine says little by itself: some models give unrelated texts 0.1, others 0.8. So it is told in deviations from each text's cosines
    with the lexicon's strangers, the mean of both texts' (the s-norm of speaker recognition, Shum et al. 2010).
    """

    def __init__(self, rows: Mapping[str, Rows], model: str = "") -> None:
        """`rows` are the model's unit vectors, [d], of all `strangers()` and the first MAX_CHARS of every text to be compared."""
        self._rows, self.model = rows, model
        self._strangers = {script: np.stack([rows[text] for text in texts]) for script, texts in lexicon().strangers.items()}

    @staticmethod
    def strangers() -> list[str]:
        return [text for texts in lexicon().strangers.values() for text in texts]

    def __call__(self, first: str, second: str) -> float:
        a, b, others = self._rows[first[:MAX_CHARS]], self._rows[second[:MAX_CHARS]], self._strangers[script_of(first, second)]
        away = [(a @ b - (others @ row).mean()) / max(float((others @ row).std()), 1e-3) for row in (a, b)]
        return float(np.clip(sum(away) / 2 / STRANGE, -1, 3))
