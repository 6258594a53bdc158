"""What an evaluation of a round found: its numbers, what they say against promoting it, and a few of the answers that changed."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec

from feedback.redact import Redactor, find
from feedback.statistics import wilson

Objection = tuple[str, dict[str, object]]  # what the words for it are called, and what stands in them
Interval = tuple[float, float, float]  # a value, and the ends of its 95% interval
# A longer answer pleases a judge without being better; a set may not lose more than MAX_FALL, whatever its interval.
LENGTHS, MAX_FALL = (0.8, 1.25), 0.01
# Of what changed, so many each way of each set are kept, and so many characters of each text.
MAX_CHANGES, MAX_CHARS = 10, 2000
FOLDER, FILE = "rounds", "changes.json"


@dataclass(frozen=True, slots=True)
class Compared:
    """One set, before and after: shares of right answers, the ratio of lengths, median milliseconds, the judge's wins and losses.

    `changed` is how many questions only `after` got right, and how many only `before` did.
    """

    num: int
    before: Interval
    after: Interval
    difference: Interval
    length_ratio: float
    ms: tuple[float, float]
    judged: tuple[int, int] | None = None
    changed: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class SaidNo:
    """The "must say no" set, asked as customers ask, so at the sampling temperature: how many lines passed before and after, the 95%
    interval of the share's change, and how many answers held what must never be said."""

    num: int
    passed: tuple[int, int]
    change: tuple[float, float]
    forbidden: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Metrics:
    """What an evaluation found. `no` is how the "must say no" set was answered; `verified` is what GRPO's rules gave when its training
    began and ended. A reward model has nothing but `ranked`."""

    against: str = ""
    sets: dict[str, Compared] = field(default_factory=dict)
    no: SaidNo | None = None
    verified: tuple[float, float] | None = None
    ranked: dict[str, tuple[int, Interval]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """A question that one side alone got right, without personal data. An empty answer is one that did not end by itself."""

    asked: str
    wanted: str
    before: str
    after: str
    is_better: bool


def objections(metrics: Metrics, words: Mapping[str, str]) -> list[str]:
    """Why what was measured does not let a round be promoted, in the `words` of a language; nothing when it does."""
    found = (*_against_rewards(metrics), *_against_sets(metrics.sets), *_against_no(metrics.no))
    return [words[f"console_rounds_against_{name}"].format(**values) for name, values in found]


def _against_rewards(metrics: Metrics) -> Iterator[Objection]:
    if metrics.ranked:
        yield "reward", {}
    elif not metrics.sets:
        yield "unmeasured", {}
    if metrics.verified and metrics.verified[1] < metrics.verified[0] - MAX_FALL:
        yield "eroded", dict(zip(("before", "after"), (f"{value:.3f}" for value in metrics.verified), strict=True))


def _against_sets(sets: Mapping[str, Compared]) -> Iterator[Objection]:
    if sets and not any(each.difference[1] > 0 for each in sets.values()):
        yield "no_gain", {}
    for name, each in sets.items():
        if each.difference[0] < -MAX_FALL:
            yield "fell", {"set": name, "points": f"{-100 * each.difference[0]:.1f}"}
        if not LENGTHS[0] <= each.length_ratio <= LENGTHS[1]:
            yield "length", {"set": name, "ratio": f"{each.length_ratio:.2f}"}


def _against_no(no: SaidNo | None) -> Iterator[Objection]:
    if no and no.change[1] < 0:
        yield "said_no", {"num": no.num, "before": no.passed[0], "after": no.passed[1]}
    if no and no.forbidden[1] > no.forbidden[0]:
        yield "forbidden", {"before": no.forbidden[0], "after": no.forbidden[1]}


def ranking(pairs: Sequence[tuple[float, int]]) -> dict[str, tuple[int, Interval]]:
    """Of a reward model's held-out pairs (`Progress.ranked`): how many, and the share in the right order; of all, and of those whose better
    answer is the shorter or the longer one, for a model that only counts characters is right in one of these alone."""
    kinds = {"all": pairs, "shorter": [each for each in pairs if each[1] < 0], "longer": [each for each in pairs if each[1] > 0]}
    rights = {kind: sum(margin > 0 for margin, _ in some) for kind, some in kinds.items()}
    return {kind: (len(some), (rights[kind] / len(some), *wilson(rights[kind], len(some)))) for kind, some in kinds.items() if some}


def some_of(changes: Sequence[tuple[str, Change]]) -> list[Change]:
    """The first few each way, redacted and cut; each comes with its system message, and what stands there is the shop's and stays.

    What redaction does not clean is left out.
    """
    kept = list[Change]()
    for is_better in (False, True):
        mine = (clean for system, change in changes if change.is_better is is_better and (clean := _redacted(change, system)))
        kept += islice(mine, MAX_CHANGES)
    return kept


def _redacted(change: Change, system: str) -> Change | None:
    redactor = Redactor(public={one.value for one in find(system)})
    asked, wanted, before, after = texts = [redactor.redact(text) for text in (change.asked, change.wanted, change.before, change.after)]
    return None if any(map(redactor.find, texts)) else Change(_cut(asked), _cut(wanted), _cut(before), _cut(after), change.is_better)


def _cut(text: str) -> str:
    """As a file can hold it."""
    return text[:MAX_CHARS].encode("utf-8", "replace").decode()


def write_changes(data_dir: Path, round_id: str, changes: Mapping[str, Sequence[Change]]) -> None:
    """In place of what an earlier evaluation kept, by set. Raises OSError."""
    path = data_dir / FOLDER / round_id / FILE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path.with_suffix(".new"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        file.write(msgspec.json.encode(changes))
    path.with_suffix(".new").replace(path)


def read_changes(data_dir: Path, round_id: str) -> dict[str, list[Change]]:
    """By set; nothing when none were kept, or when a customer's rows were erased since. Raises OSError."""
    path = data_dir / FOLDER / round_id / FILE
    return msgspec.json.decode(path.read_bytes(), type=dict[str, list[Change]]) if path.exists() else {}


def forget_changes(data_dir: Path) -> None:
    """Of all rounds: which customer a line is of cannot be told from it, and evaluating makes them again. Raises OSError."""
    for path in (data_dir / FOLDER).glob(f"*/{Path(FILE).stem}.*"):
        path.unlink(missing_ok=True)
