"""How well the rephrase detector does: `python -m bench.rephrase [--embedding MODEL] [--judge URL] [--train] [--multidogo FOLDER]`.

The figures are of five folds: what is measured was not trained on. `--train` then fits everything and writes feedback/rephrase.json.
"""

import argparse
import asyncio
import csv
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from feedback import likeness
from feedback.judge import ModelServer
from feedback.likeness import MAX_CHARS, PAIR_FEATURES, Meanings, pair_features, same_question
from feedback.rephrase import AGAIN, FIRES, KINDS, TRAINS, TURN_FEATURES, Turn, classify, gate, turn_features
from feedback.second_look import SCHEMA, believed, opinion, prompt
from server.app import find_vectors
from server.settings import KnowledgeSettings, Settings

console = Console(soft_wrap=True, width=140)
DATA = Path(__file__).parent / "data"
NUM_FOLDS = 5
# The labelled turns were picked to hold many that ask again. The second model stands for a desk where one in five does, among turns that
# pass its gates: with MultiDoGO's rate, below one in a hundred, a prior would drown what the words say.
NATURAL_RATE, RIDGE = 0.2, 1.0
# A judge is measured on what fires and on what comes near: there are too few false alarms among the first.
NEAR = 0.2
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
    meaning: float | None = None


# What the detector says of a turn: its kind, and the probability that it asks again.
Said = tuple[Labelled, str, float]


def load() -> tuple[list[Labelled], list[Pair]]:
    """The labelled turns of both languages, and pairs of questions."""
    rows = [(name, row) for name in ("en", "written", "zh") for row in _rows(f"rephrase.{name}.jsonl")]
    turns = [(name, row, row["id"].rsplit("/", 1)[0] if name == "en" else row["earlier"][0]) for name, row in rows]
    labelled = [Labelled(Turn(row["text"], row["earlier"], row["answer"]), row["label"], name, group) for name, row, group in turns]
    return labelled, [Pair(row["first"], row["second"], row["same"], "zh", row["first"]) for row in _rows("questions.zh.jsonl")]


def pairs_of(labelled: Sequence[Labelled]) -> list[Pair]:
    """The last two turns of what asks again, goes on or begins anew; an answer to the bot is no question."""
    return [
        Pair(one.turn.earlier[-1], one.turn.text, SAME[one.kind], "zh" if one.source == "zh" else "en", one.group, *one.turn.meanings[-1:])
        for one in labelled
        if one.kind in SAME
    ]


def understood(labelled: Sequence[Labelled], pairs: Sequence[Pair], like: Callable[[str, str], float]) -> tuple[list[Labelled], list[Pair]]:
    """The same, with what an embedding model finds of them."""
    turns = [tuple(like(each, one.turn.text) for each in one.turn.earlier) for one in labelled]
    told = [replace(one, turn=replace(one.turn, meanings=meanings)) for one, meanings in zip(labelled, turns, strict=True)]
    return told, [replace(pair, meaning=like(pair.first, pair.second)) for pair in pairs]


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
    which = "_meaning" if labelled[0].turn.meanings else ""
    for language in ("en", "zh"):
        these = [pair for pair in pairs if pair.language == language]
        features = [pair_features(pair.first, pair.second, pair.meaning) for pair in these]
        found[language + which] = fit(features, [pair.is_same for pair in these])
    likeness.weights().update(found)
    asking = [one for one in labelled if gate(one.turn) is None]
    found["turn" + which] = fit([turn_features(one.turn) for one in asking], [one.kind in AGAIN for one in asking], NATURAL_RATE)
    likeness.weights().update(found)
    return found


def cross(labelled: list[Labelled], asked: list[Pair]) -> tuple[list[Said], list[tuple[Pair, float]]]:
    """What the detector says of each turn and pair when it has not seen it."""
    said: list[Said] = []
    odds: list[tuple[Pair, float]] = []
    for fold in range(NUM_FOLDS):
        seen = [one for one in labelled if zlib.crc32(one.group.encode()) % NUM_FOLDS != fold]
        train(seen, pairs_of(seen) + [pair for pair in asked if zlib.crc32(pair.group.encode()) % NUM_FOLDS != fold])
        verdicts = [(one, classify(one.turn)) for one in labelled if one not in seen]
        said += [(one, verdict.kind, verdict.prob) for one, verdict in verdicts]
        held = [pair for pair in asked + pairs_of(labelled) if zlib.crc32(pair.group.encode()) % NUM_FOLDS == fold]
        odds += [(pair, same_question(pair.first, pair.second, pair.meaning)) for pair in held]
    return said, odds


def report(said: list[Said], odds: list[tuple[Pair, float]], alone: set[Pair]) -> None:
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


def meanings(model: Path, labelled: Sequence[Labelled], pairs: Sequence[Pair]) -> Meanings:
    """What an embedding model finds of all of them."""
    texts = {each for one in labelled for each in (one.turn.text, *one.turn.earlier)}
    texts |= {each for pair in pairs for each in (pair.first, pair.second)}
    needed = sorted({each[:MAX_CHARS] for each in texts} | set(Meanings.strangers()))
    made = asyncio.run(find_vectors(Settings(knowledge=KnowledgeSettings(embedding_model=model)), [], needed))
    assert made is not None
    return Meanings(dict(zip(needed, made[1], strict=True)))


def judged(said: Sequence[Said], url: str) -> list[Said]:
    """The same after a model's second look at all that fires; says how often it is right about that and what comes near."""
    model, looked = ModelServer(url), [one for one in said if one[2] >= NEAR]
    texts = [(one.turn.earlier[-1], one.turn.answer, one.turn.text) for one, _, _ in looked]
    told = [opinion(model.shaped(prompt(*each), SCHEMA)) or (False, False) for each in texts]
    against = [again and not (resolved and answer) for (again, resolved), (_, answer, _) in zip(told, texts, strict=True)]
    known = [(one.kind in AGAIN, each) for (one, _, _), each in zip(looked, against, strict=True)]
    found, spared = ((known.count((real, real)) + 1) / (sum(each[0] is real for each in known) + 2) for real in (True, False))
    right = min(max((found + spared) / 2, 0.01), 0.98)
    console.print(f"\nthe judge: {found:.2f} of those that ask again, {spared:.2f} of the others; rephrase_judge = {right:.2f}")
    judgements = {id(one): each for (one, _, prob), each in zip(looked, against, strict=True) if prob >= FIRES}
    return [(one, kind, believed(prob, judgements[id(one)], right) if id(one) in judgements else prob) for one, kind, prob in said]


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.rephrase")
    parser.add_argument("--embedding", type=Path, help="an embedding model: measured with its vectors too")
    parser.add_argument("--judge", metavar="URL", help="a model (http://...) that looks again at what fires")
    parser.add_argument("--train", action="store_true", help="write feedback/rephrase.json")
    parser.add_argument("--multidogo", type=Path, help="a folder with MultiDoGO's tsv files, for the rate on natural turns")
    options = parser.parse_args()
    labelled, asked = load()
    for model in (None, options.embedding)[: 1 + bool(options.embedding)]:
        if model:
            console.print("\nwith vectors")
            labelled, asked = understood(labelled, asked, meanings(model, labelled, asked))
        said, odds = cross(labelled, asked)
        report(said, odds, set(asked))
        train(labelled, pairs_of(labelled) + asked)
    if options.judge:
        report(judged(said, options.judge), odds, set(asked))
    if options.train:
        found = {name: [round(float(value), 4) for value in values] for name, values in likeness.weights().items()}
        told = {"features": {"pair": PAIR_FEATURES, "turn": TURN_FEATURES}, "weights": found}
        likeness.WEIGHTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if options.multidogo:
        likeness.weights.cache_clear()
        natural(options.multidogo)


if __name__ == "__main__":
    main()
