"""How well the rephrase detector does: `python -m bench.rephrase [--train] [--multidogo FOLDER]`.

The figures are of five folds: what is measured was not trained on. `--train` then fits everything and writes feedback/rephrase.json.
"""

import argparse
import csv
import json
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from feedback import likeness
from feedback.likeness import PAIR_FEATURES, pair_features, same_question
from feedback.rephrase import AGAIN, FIRES, KINDS, TRAINS, TURN_FEATURES, Turn, classify, gate, turn_features

console = Console(soft_wrap=True, width=140)
DATA = Path(__file__).parent / "data"
NUM_FOLDS = 5
# The labelled turns were picked to hold many that ask again. The second model stands for a desk where one in five does, among turns that
# pass its gates: with MultiDoGO's rate, below one in a hundred, a prior would drown what the words say.
NATURAL_RATE, RIDGE = 0.2, 1.0
Weights = dict[str, NDArray[np.float64]]
SAME = {"repeat": True, "rephrase": True, "follow_up": False, "new_topic": False}


@dataclass(frozen=True, slots=True)
class Labelled:
    """A turn with the kind that a reader gave it. What is of one `group` is in one fold."""

    turn: Turn
    kind: str
    source: str
    group: str


@dataclass(frozen=True, slots=True)
class Pair:
    first: str
    second: str
    is_same: bool
    language: str
    group: str


def load() -> tuple[list[Labelled], list[Pair]]:
    """The labelled turns of both languages, and pairs of questions."""
    rows = [(name, row) for name in ("en", "written", "zh") for row in _rows(f"rephrase.{name}.jsonl")]
    turns = [(name, row, row["id"].rsplit("/", 1)[0] if name == "en" else row["earlier"][0]) for name, row in rows]
    labelled = [Labelled(Turn(row["text"], row["earlier"], row["answer"]), row["label"], name, group) for name, row, group in turns]
    return labelled, [Pair(row["first"], row["second"], row["same"], "zh", row["first"]) for row in _rows("questions.zh.jsonl")]


def pairs_of(labelled: Sequence[Labelled]) -> list[Pair]:
    """The last two turns of what asks again, goes on or begins anew; an answer to the bot is no question."""
    return [
        Pair(one.turn.earlier[-1], one.turn.text, SAME[one.kind], "zh" if one.source == "zh" else "en", one.group)
        for one in labelled
        if one.kind in SAME
    ]


def fit(rows: Sequence[NDArray[np.float64]], is_one: Sequence[bool], rate: float | None = None) -> NDArray[np.float64]:
    """Logistic regression with a ridge, by Newton's method; `rate` is the share of ones that the weights stand for."""
    x, y = np.array(rows), np.array(is_one, float)
    weights = np.where(y > 0, rate / y.mean(), (1 - rate) / (1 - y.mean())) if rate else np.ones(len(y))
    ridge = np.r_[1e-3, np.full(x.shape[1] - 1, RIDGE)]
    found = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ found))
        hessian = (x * (weights * p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        found -= np.linalg.solve(hessian, x.T @ (weights * (p - y)) + ridge * found)
    return found


def train(labelled: Sequence[Labelled], pairs: Sequence[Pair]) -> Weights:
    """The two models, put to use; the second reads the first."""
    found: Weights = {}
    for language in ("en", "zh"):
        these = [pair for pair in pairs if pair.language == language]
        found[language] = fit([pair_features(pair.first, pair.second) for pair in these], [pair.is_same for pair in these])
    likeness.weights().update(found)
    asking = [one for one in labelled if gate(one.turn) is None]
    found["turn"] = fit([turn_features(one.turn) for one in asking], [one.kind in AGAIN for one in asking], NATURAL_RATE)
    likeness.weights().update(found)
    return found


def cross(labelled: list[Labelled], asked: list[Pair]) -> tuple[list[tuple[Labelled, str, float]], list[tuple[Pair, float]]]:
    """What the detector says of each turn and pair when it has not seen it."""
    said: list[tuple[Labelled, str, float]] = []
    odds: list[tuple[Pair, float]] = []
    for fold in range(NUM_FOLDS):
        seen = [one for one in labelled if zlib.crc32(one.group.encode()) % NUM_FOLDS != fold]
        train(seen, pairs_of(seen) + [pair for pair in asked if zlib.crc32(pair.group.encode()) % NUM_FOLDS != fold])
        verdicts = [(one, classify(one.turn)) for one in labelled if one not in seen]
        said += [(one, verdict.kind, verdict.prob) for one, verdict in verdicts]
        held = [pair for pair in asked + pairs_of(labelled) if zlib.crc32(pair.group.encode()) % NUM_FOLDS == fold]
        odds += [(pair, same_question(pair.first, pair.second)) for pair in held]
    return said, odds


def report(said: list[tuple[Labelled, str, float]], odds: list[tuple[Pair, float]], alone: set[Pair]) -> None:
    for source in ("en", "written", "zh"):
        these = [one for one in said if one[0].source == source]
        table = Counter((one.kind, kind) for one, kind, _ in these)
        console.print(
            f"\n{source}: a row a label, a column what the detector says\n{'':22}" + "".join(f"{kind[:10]:>11}" for kind in KINDS)
        )
        for label in KINDS:
            console.print(f"{label:22}" + "".join(f"{table[label, kind]:11}" for kind in KINDS))
        for name, bar in (("fires", FIRES), ("trains", TRAINS)):
            _score(f"{source} {name} at {bar}", [(one.kind in AGAIN, prob >= bar) for one, _, prob in these])
    _score("zh questions alone", [(pair.is_same, p >= 0.5) for pair, p in odds if pair in alone])
    for language in ("zh", "en"):
        _score(f"{language} questions, in dialogues too", [(pair.is_same, p >= 0.5) for pair, p in odds if pair.language == language])


def _score(name: str, verdicts: list[tuple[bool, bool]]) -> None:
    hit, fired, real = (sum(map(each, verdicts)) for each in (all, lambda one: one[1], lambda one: one[0]))
    f1 = 2 * hit / (fired + real)
    console.print(
        f"{name}: precision {hit / max(fired, 1):.3f} recall {hit / real:.3f} F1 {f1:.3f}; {fired} fired of {len(verdicts)}, {real} are"
    )


def natural(folder: Path) -> None:
    """How often the detector fires on every customer turn of MultiDoGO's files, and how long it takes."""
    turns: list[Turn] = []
    for path in sorted(folder.glob("*.tsv")):
        earlier: dict[str, list[str]] = {}
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                if row["utterance"]:
                    before = earlier.setdefault(row["conversationId"], [])
                    turns.append(Turn(row["utterance"], tuple(before[-3:])))
                    before.append(row["utterance"])
    began = time.perf_counter()
    probs = [classify(turn).prob for turn in turns]
    ms = (time.perf_counter() - began) * 1e3 / len(turns)
    fired = ", ".join(f"{sum(prob >= bar for prob in probs)} at {bar}" for bar in (FIRES, TRAINS))
    console.print(f"MultiDoGO: of {len(turns)} turns {fired} fire; {ms:.2f} ms a turn")


def _rows(name: str) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.rephrase")
    parser.add_argument("--train", action="store_true", help="write feedback/rephrase.json")
    parser.add_argument("--multidogo", type=Path, help="a folder with MultiDoGO's tsv files, for the rate on natural turns")
    options = parser.parse_args()
    labelled, asked = load()
    report(*cross(labelled, asked), set(asked))
    found = {name: [round(float(value), 4) for value in values] for name, values in train(labelled, pairs_of(labelled) + asked).items()}
    if options.train:
        told = {"features": {"pair": PAIR_FEATURES, "turn": TURN_FEATURES}, "weights": found}
        likeness.WEIGHTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if options.multidogo:
        likeness.weights.cache_clear()
        natural(options.multidogo)


if __name__ == "__main__":
    main()
