"""Weighing: what each signal counts for in a snapshot, and why. Pure: the same signals give the same weights."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations, islice, pairwise
from statistics import fmean, pstdev
from typing import TypeVar

from feedback.grams import HAN, STOP, TOKEN
from feedback.rephrase import TRAINS

K = TypeVar("K")
Judged = dict[str, tuple[float, str | None]]
DAY_MS = 24 * 3_600_000
# How much a kind says, before any cap. The components stay in the ledger: a later round may weigh anew.
STRENGTH = {
    **{"agent_correction": 1.0, "correction": 0.8, "pairwise": 0.8, "thumb": 0.6, "rephrase": 0.5, "csat": 0.5, "gratitude": 0.3},
    **{"regenerate": 0.3, "edit": 0.3, "reopen": 0.3, "stop": 0.2, "handoff_request": 0.2, "copy": 0.1, "silence": 0.05},
}
TOLD_WHY = 0.8  # a thumb down that says why
MAX_VISITOR_DAY, MAX_NETWORK_DAY, MAX_NETWORK_SHARE, NUM_ROUNDS = 1.0, 2.0, 0.02, 100
# When a network's day is a burst, a caller one-sided, a question asked too often, a phrase a trigger.
BURST_Z, BURST_DAYS, MIN_BURST = 4.0, 14, 10
MAX_ONE_SIDED, MIN_ENTROPY = 20, 0.2
MAX_ALIKE, ALIKE, MAX_KINDS = 3, 0.8, 50
MIN_TRIGGER, MAX_TRIGGER_SHARE, MAX_CHANCE, MAX_CONTEXT = 5, 0.05, 1e-5, 0.08


@dataclass(frozen=True, slots=True)
class Signal:
    """A row of the ledger with the question that its answer answered. `network` is a salted hash of the sender's /24 or /64;
    `is_released` says that a reviewer let it out of quarantine; `other_id` is the answer that a choice put its answer above or below."""

    id: str
    seq: int
    conversation_id: str
    completion_id: str | None
    visitor_id: str
    network: str | None
    kind: str
    value: float
    weight: float
    reason: str | None
    prob: float | None
    actor: str
    tags: tuple[str, ...]
    retracts_id: str | None
    created_at_ms: int
    question: str
    is_released: bool = False
    other_id: str | None = None


@dataclass(frozen=True, slots=True)
class Weighed:
    """`weight` is what the signal counts for; `reason` is None where that is its kind's full strength."""

    signal: Signal
    weight: float
    reason: str | None


def weigh(signals: Sequence[Signal]) -> list[Weighed]:
    """Each signal's weight in a snapshot that holds all of `signals`, in their order."""
    retracted = {each.retracts_id for each in signals if each.retracts_id}
    judged = {each.id: _strength(each, retracted) for each in signals}
    counted = [each for each in signals if judged[each.id][0] > 0 and each.actor != "agent"]
    for signal_id, reason in _quarantined([each for each in counted if not each.is_released]).items():
        judged[signal_id] = 0.0, f"quarantine: {reason}"
    # Pressing, saying it again and correcting are one judgement of an answer, and count for no more than a thumb that says why.
    _cap(counted, judged, "answer", lambda each: (each.visitor_id, each.completion_id or each.id, each.value > 0), TOLD_WHY)
    _cap(counted, judged, "visitor_day", lambda each: (each.visitor_id, each.created_at_ms // DAY_MS), MAX_VISITOR_DAY)
    _cap(counted, judged, "network_day", lambda each: (_net(each), each.created_at_ms // DAY_MS), MAX_NETWORK_DAY)
    _cap_share(counted, judged)
    return [Weighed(each, *judged[each.id]) for each in signals]


def _strength(each: Signal, retracted: Set[str]) -> tuple[float, str | None]:
    if each.id in retracted:
        return 0.0, "retracted"
    if each.weight <= 0:
        return 0.0, each.reason or "no_weight"
    if each.prob is not None and each.prob < TRAINS and not each.is_released:
        return 0.0, "needs_review"
    return each.weight * strength_of(each.kind, each.value, each.tags), None


def strength_of(kind: str, value: float, tags: Sequence[str]) -> float:
    """How much a signal says before any cap, 0 to 1."""
    return TOLD_WHY if kind == "thumb" and value < 0 and tags else STRENGTH.get(kind, 0.0)


def _net(each: Signal) -> str:
    return each.network or each.visitor_id


def _cap(signals: Iterable[Signal], judged: Judged, reason: str, who: Callable[[Signal], object], most: float) -> None:
    """Shrink what each group holds to `most`, all of its signals alike."""
    for members in _grouped(signals, who).values():
        total = math.fsum(judged[each.id][0] for each in members)
        for each in members if total > most + 1e-9 else ():
            weight, why = judged[each.id]
            judged[each.id] = weight * most / total, reason if weight else why


def _cap_share(signals: Sequence[Signal], judged: Judged) -> None:
    """No network holds more than MAX_NETWORK_SHARE of the round; where there are too few for that, none
    more than their median or one visitor's day."""
    held = [math.fsum(judged[each.id][0] for each in mine) for mine in _grouped(signals, _net).values()]
    sizes = sorted(size for size in held if size > 0)
    cap = max(sizes, default=0.0)
    for _ in range(NUM_ROUNDS):
        cap = min(cap, MAX_NETWORK_SHARE * math.fsum(min(size, cap) for size in sizes))
    if len(sizes) * MAX_NETWORK_SHARE <= 1:
        cap = max(sizes[len(sizes) // 2], MAX_VISITOR_DAY) if len(sizes) > 1 else math.inf
    _cap(signals, judged, "network_share", _net, cap)


def _quarantined(signals: Sequence[Signal]) -> dict[str, str]:
    """Why signals wait for a reviewer, by id."""
    votes = [each for each in signals if each.kind in ("thumb", "pairwise")]
    found: dict[str, str] = {}
    for reason, ids in (("trigger", _triggers(signals)), ("near_duplicate", _alike(votes)), ("one_sided", _one_sided(votes))):
        found |= {signal_id: f"{reason} {detail}".strip() for signal_id, detail in ids}
    return found | dict.fromkeys(_bursts(signals), "burst")


def _bursts(signals: Sequence[Signal]) -> Iterator[str]:
    days = _grouped(signals, lambda each: (_net(each), each.created_at_ms // DAY_MS))
    for (who, day), mine in days.items():
        if len(mine) < MIN_BURST:
            continue
        near = [len(ids) for (other, past), ids in days.items() if 0 <= day - past <= BURST_DAYS and (other, past) != (who, day)]
        if len(near) > 2 and (len(mine) - fmean(near)) / max(pstdev(near), 1.0) > BURST_Z:
            yield from (each.id for each in mine)


def _one_sided(votes: Sequence[Signal]) -> Iterator[tuple[str, str]]:
    for who in (lambda each: each.visitor_id, _net):
        for mine in _grouped(votes, who).values():
            share = sum(each.value > 0 for each in mine) / len(mine)
            entropy = -sum(p * math.log2(p) for p in (share, 1 - share) if p)
            if len(mine) > MAX_ONE_SIDED and entropy < MIN_ENTROPY:
                yield from ((each.id, "") for each in mine)


def _alike(votes: Sequence[Signal]) -> Iterator[tuple[str, str]]:
    for mine in _grouped(votes, lambda each: (_net(each), each.value > 0)).values():
        kinds: dict[frozenset[str], int] = {}
        for each in mine:
            runs = _runs(each.question)
            kind = next((other for other in kinds if len(runs & other) >= ALIKE * len(runs | other)), runs)
            kinds[kind] = kinds.get(kind, 0) + 1
            if runs and kinds[kind] > MAX_ALIKE:
                yield each.id, ""
            if len(kinds) > MAX_KINDS:
                del kinds[next(iter(kinds))]


def _runs(text: str) -> frozenset[str]:
    line = " ".join(text.lower().split())
    return frozenset(line[place : place + 5] for place in range(max(1, len(line) - 4))) if line else frozenset()


def _triggers(signals: Sequence[Signal]) -> Iterator[tuple[str, str]]:
    """Signals on questions that hold a rare phrase, whose votes all fall to one side although the questions have nothing else in common."""
    asked = {each.completion_id or each.id: each for each in signals if each.question and each.value}
    words = {key: tuple(TOKEN.findall(each.question.lower())) for key, each in asked.items()}
    holders: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key, said in words.items():
        for phrase in {said[place : place + size] for size in (1, 2, 3, 4) for place in range(len(said) - size + 1)}:
            holders[phrase].append(key)
    ups = sum(each.value > 0 for each in asked.values())
    telling = {key: frozenset(said) - STOP for key, said in words.items()}
    named = {key: " ".join(phrase) for phrase in _suspects(holders, asked, telling, ups) for key in holders[phrase]}
    for each in signals:
        if trigger := named.get(each.completion_id or each.id):
            yield each.id, trigger


def _suspects(
    holders: Mapping[tuple[str, ...], list[str]], asked: Mapping[str, Signal], telling: Mapping[str, frozenset[str]], ups: int
) -> Iterator[tuple[str, ...]]:
    said = list(telling.values())
    unrelated = max(MAX_CONTEXT, 1.3 * _shared([said[n * 7919 % len(said)] for n in range(30)])) if said else 0.0
    for phrase, keys in holders.items():
        rare = MIN_TRIGGER <= len(keys) <= max(MIN_TRIGGER, MAX_TRIGGER_SHARE * len(asked))
        up = sum(asked[key].value > 0 for key in keys) if rare else 1
        is_common = set(phrase) <= STOP or (len(phrase) == 1 and HAN.match(phrase[0]))
        if not rare or up not in (0, len(keys)) or is_common:
            continue
        rest = len(asked) - len(keys)
        side = ((ups - up if up else rest - ups) + 1) / (rest + 2)
        # Words that are said nowhere else, in a row, amid unrelated questions; or votes that chance does not explain.
        pieces = [(word,) for word in phrase] if not HAN.match(phrase[0]) else list(pairwise(phrase))
        is_foreign = len(pieces) > 1 and all(len(holders[piece]) == len(keys) for piece in pieces)
        is_suspect = is_foreign or side ** len(keys) <= MAX_CHANCE
        if is_suspect and _shared([telling[key] - set(phrase) for key in keys]) <= unrelated:
            yield phrase


def _shared(contexts: Iterable[frozenset[str]]) -> float:
    """How alike questions are, on average: the share of telling words that two of them have in common."""
    return fmean(len(a & b) / len(a | b) if a | b else 1.0 for a, b in islice(combinations(contexts, 2), 400))


def _grouped(signals: Iterable[Signal], who: Callable[[Signal], K]) -> dict[K, list[Signal]]:
    groups: dict[K, list[Signal]] = defaultdict(list)
    for each in signals:
        groups[who(each)].append(each)
    return groups
