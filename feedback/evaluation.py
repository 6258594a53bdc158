"""What an evaluation of a round found: its numbers, what they say against promoting it, and a few of the answers that changed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec

from feedback.redact import Redactor, find
from feedback.statistics import wilson

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
class Metrics:
    """What an evaluation found. `said_no` is the size of that set, and how many lines passed before and after;
    `verified` is what GRPO's rules gave when its training began and ended. A reward model has nothing but `ranked`."""

    against: str = ""
    sets: dict[str, Compared] = field(default_factory=dict)
    said_no: tuple[int, int, int] | None = None
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
    found = []

    def object_(name: str, **values: object) -> None:
        found.append(words[f"console_rounds_against_{name}"].format(**values))

    if metrics.ranked:
        object_("reward")
    elif not metrics.sets:
        object_("unmeasured")
    elif not any(each.difference[1] > 0 for each in metrics.sets.values()):
        object_("no_gain")
    for name, each in metrics.sets.items():
        if each.difference[0] < -MAX_FALL:
            object_("fell", set=name, points=f"{-100 * each.difference[0]:.1f}")
        if not LENGTHS[0] <= each.length_ratio <= LENGTHS[1]:
            object_("length", set=name, ratio=f"{each.length_ratio:.2f}")
    if metrics.verified and metrics.verified[1] < metrics.verified[0] - MAX_FALL:
        object_("eroded", before=f"{metrics.verified[0]:.3f}", after=f"{metrics.verified[1]:.3f}")
    if metrics.said_no and metrics.said_no[2] < metrics.said_no[1]:
        object_("said_no", **dict(zip(("num", "before", "after"), metrics.said_no, strict=True)))
    return found


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
