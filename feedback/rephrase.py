"""The rephrase detector: does a customer's turn ask the question before it once more, because the answer missed it?

It reads a turn, the customer's turns before it and the bot's answer between, in English and Chinese, in well under a millisecond. Two
small logistic models decide: one says whether two questions are the same, the other whether this turn complains of the answer by asking
again. Where an embedding model is loaded, what it finds is one feature more of the first; those weights were fitted with
multilingual-e5-small and serve any model. `python -m bench.rephrase --train --embedding MODEL` makes them all, feedback/rephrase.json.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from feedback.grams import HAN, TOKEN
from feedback.likeness import PAIR_FEATURES, compare, lexicon, plain, read, sigmoid, weights

VERSION = "1"
Kind = Literal["repeat", "rephrase", "correction", "clarification_answer", "follow_up", "new_topic", "closing"]
KINDS: tuple[Kind, ...] = get_args(Kind)
AGAIN: frozenset[Kind] = frozenset({"repeat", "rephrase", "correction"})
Friction = Literal["thumb_down", "stop", "regenerate", "edit", "handoff_request"]
# From here on the turn is taken for one that asks again; TRAINS is what may train a model without a person's look.
FIRES, TRAINS = 0.52, 0.9
MAX_GAP_S = 15 * 60
NUM_EARLIER = 3


@dataclass(frozen=True, slots=True)
class Turn:
    """A customer's turn and what came before: their turns (oldest first), the bot's answer in between ("" when unknown), the
    seconds since that answer, and what else was pressed. `delivered` is False when no answer reached them. `meanings` says how alike
    it is to each of `earlier` (likeness.Meanings), where there is an embedding model."""

    text: str
    earlier: Sequence[str]
    answer: str = ""
    gap_s: float | None = None
    friction: frozenset[Friction] = frozenset()
    delivered: bool = True
    meanings: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`prob` is that the turn asks again; `span` is how far back: 1 for the turn before it."""

    kind: Kind
    prob: float
    span: int
    reasons: tuple[str, ...]


_NAMES = """
one same same_last equal correction again own_mistake more yes request question both_ask own_state bot_asked answers_bot from_answer
new_words replaced short codes friction asks_other opposite small zh correction_same shared bot_unknown telling contained grams
asks_same length longer size answer_on_topic nothing_shared question_zh frame
"""
TURN_FEATURES = tuple(_NAMES.split())


def _view(turn: Turn) -> tuple[int, NDArray[np.float64], float]:
    """How far back the turn lies that this one resembles most, the features beside it, and how alike they are."""
    said, cues = read(turn.text), _cues(turn.text)
    earlier = list(turn.earlier)[-NUM_EARLIER:]
    meanings: Sequence[float | None] = list(turn.meanings)[-NUM_EARLIER:] or [None] * len(earlier)
    compared = [compare(each, turn.text, meaning) for each, meaning in zip(earlier, meanings, strict=True)]
    odds = [each[1] for each in compared]
    best = max(range(len(odds)), key=lambda place: odds[place] - 0.3 * (len(odds) - 1 - place))
    other, pair = read(earlier[best]), dict(zip(PAIR_FEATURES, compared[best][0], strict=False))
    before, answer = _cues(earlier[best]), read(turn.answer)
    bot_asked = _asks(turn.answer)
    fresh = said.telling - other.telling
    from_answer = len(fresh & answer.telling) / max(len(said.telling), 1)
    asks = bool(cues & {"question", "request"})
    both = asks and bool(before & {"question", "request"})
    is_zh = HAN.search(turn.text) is not None
    size = len(said.tokens) / (2 if is_zh else 1)
    same = (np.clip(odds[best], -6, 6) / 3, np.clip(odds[-1], -6, 6) / 3, pair["equal"])
    cued = tuple(name in cues for name in ("correction", "again", "own_mistake", "more", "yes", "request", "question"))
    asked = (both, "own_state" in cues, bot_asked, bot_asked and not asks, from_answer)
    fresh_share = len(fresh) / max(len(said.telling), 1)
    friction, codes = min(len(turn.friction), 2) / 2, min(len(said.codes), 3) / 3
    change = (
        fresh_share,
        pair["replaced"],
        size <= 3,
        codes,
        friction,
        pair["asks_other"],
        pair["opposite"],
        len(other.telling) <= 1,
        is_zh,
    )
    corrects = ("correction" in cues) * (1 - pair["nothing_shared"])
    shared = (corrects, min(len(said.telling & other.telling), 5) / 5, not turn.answer)
    words = tuple(pair[name] for name in ("telling", "contained", "grams", "asks_same", "length"))
    on_topic = len(other.telling & answer.telling) / max(len(other.telling), 1)
    sizes = (len(said.tokens) > len(other.tokens), min(size, 12) / 12, on_topic, pair["nothing_shared"], is_zh and both)
    features = (1, *same, *cued, *asked, *change, *shared, *words, *sizes, pair["frame"])
    return len(earlier) - best, np.array(features, float), float(pair["cosine"])


def _asks(answer: str) -> bool:
    return re.search(r"[?？]\s*$|请问|请提供|\bplease (?:tell|give|provide)", answer.strip(), re.IGNORECASE) is not None


@lru_cache(4096)
def _cues(text: str) -> frozenset[str]:
    line = plain(text)
    found = {name for name, pattern in lexicon().cues.items() if name not in ("closing", "greeting") and pattern.search(line)}
    said = lexicon().han.sub(lambda hit: lexicon().zh[hit[0]], line)
    if lexicon().cues["question"].search(said):
        found.add("question")
    for act in ("closing", "greeting"):
        if act not in found and len(re.findall(r"\w+", lexicon().cues[act].sub(" ", line))) <= (act == "closing" and "gratitude" in found):
            found.add(act)
    return frozenset(found)


def turn_features(turn: Turn) -> NDArray[np.float64]:
    """What the second model reads, [len(TURN_FEATURES)]; `turn.earlier` is not empty."""
    return _view(turn)[1]


def classify(turn: Turn) -> Verdict:
    """What this turn does, and how likely it is that it asks again. Pure; never raises."""
    if stopped := gate(turn):
        return stopped
    (span, features, likeness), cues = _view(turn), _cues(turn.text)
    prob = sigmoid(float(features @ weights()["turn_meaning" if turn.meanings else "turn"]))
    reasons = tuple(sorted(cues & {"correction", "again", "own_mistake", "more"} | {str(each) for each in turn.friction}))
    told = dict(zip(TURN_FEATURES, features, strict=True))
    if prob >= FIRES:
        kind: Kind = "repeat" if told["equal"] else "correction" if told["correction"] else "rephrase"
        return Verdict(kind, prob, span, (*reasons, f"likeness {likeness:.2f}"))
    if told["answers_bot"] or told["yes"] or told["own_mistake"] or told["own_state"] or (told["codes"] and not told["question"]):
        return Verdict("clarification_answer", prob, span, reasons)
    if likeness >= 0.2 or told["more"] or told["from_answer"] or told["short"] or "hedge" in cues:
        return Verdict("follow_up", prob, span, reasons)
    return Verdict("new_topic", prob, span, reasons)


def thanks(text: str) -> bool:
    """Does a turn give thanks, rather than decline with them?"""
    return "gratitude" in _cues(text) and not re.match(r"no\b|不", plain(text))


def is_courtesy(text: str) -> bool:
    """Does a turn say no more than hello, thanks or goodbye?"""
    return bool({"greeting", "closing"} & _cues(text))


def gate(turn: Turn) -> Verdict | None:
    """What is never a question asked again, whatever it resembles."""
    cues = _cues(turn.text)
    if not TOKEN.search(plain(turn.text)) or "closing" in cues:
        kind: Kind = "clarification_answer" if _asks(turn.answer) and "gratitude" not in cues else "closing"
        return Verdict(kind, 0.0, 1, ("closing",))
    if not turn.earlier or "greeting" in cues:
        return Verdict("new_topic", 0.0, 1, ("greeting",) if "greeting" in cues else ("first",))
    if turn.gap_s is not None and turn.gap_s > MAX_GAP_S:
        return Verdict("new_topic", 0.0, 1, ("long gap",))
    if not turn.delivered:
        return Verdict("new_topic", 0.0, 1, ("no answer reached them",))
    return None
