"""How well questions find their passage: `python -m bench.retrieval FOLDER [--embedding MODEL]`."""

import argparse
import asyncio
import csv
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from feedback.likeness import Rows
from feedback.retrieval import FITS, Found, Index
from server.app import find_vectors
from server.settings import KnowledgeSettings, Settings

console = Console(soft_wrap=True)
Asked = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Topic:
    """An intent as an article: its example questions, and its name for an answer."""

    title: str
    questions: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares of 1. `accuracy` counts a question right only when its passage is first and above the threshold."""

    recall_at_5: float
    first: float
    accuracy: float
    outside: float | None
    ms: float


def banking(folder: Path, every: int = 5) -> tuple[Asked, Asked]:
    """Banking77: train.csv to learn, test.csv to ask; without a test.csv every fifth line of a shuffled train.csv is asked."""
    learnt = _rows(folder / "banking77" / "train.csv")
    if (test := folder / "banking77" / "test.csv").exists():
        return learnt, _rows(test)
    random.Random(0).shuffle(learnt)
    return [row for number, row in enumerate(learnt) if number % every], learnt[::every]


def clinc(folder: Path, split: str) -> tuple[Asked, Asked, list[str]]:
    data = json.loads((folder / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    pairs = {name: [(text, intent) for text, intent in rows] for name, rows in data.items()}
    return pairs["train"], pairs[split], [text for text, _ in pairs[f"oos_{split}"]]


def measure(learnt: Asked, asked: Asked, outside: Iterable[str] = (), threshold: float = FITS, settings: Settings | None = None) -> Scores:
    """Index the learnt questions as articles, then ask; by meaning too, where `settings` name an embedding model."""
    examples = defaultdict(list)
    for text, intent in learnt:
        examples[intent].append(text)
    topics = [Topic(texts[0], tuple(texts), intent.replace("_", " ")) for intent, texts in examples.items()]
    names, index, beyond = list(examples), Index(topics), list(outside)
    texts = [*(text for text, _ in asked), *beyond]
    vectors: Sequence[Rows | None] = [None] * len(texts)
    if settings and (made := asyncio.run(find_vectors(settings, index.texts, texts))):
        index, vectors = index.embedded(made[0]), list(made[1])
    began = time.perf_counter()
    found = [(index.search(text, vector=vector), intent) for (text, intent), vector in zip(asked, vectors, strict=False)]
    ms = (time.perf_counter() - began) * 1e3 / len(asked)
    strange = [index.search(text, vector=vector) for text, vector in zip(beyond, vectors[len(asked) :], strict=True)]

    def is_first(one: Found, intent: str) -> bool:
        return names[one.hits[0].number] == intent

    return Scores(
        recall_at_5=_share(any(names[hit.number] == intent for hit in one.hits) for one, intent in found),
        first=_share(is_first(one, intent) for one, intent in found),
        accuracy=_share(is_first(one, intent) and one.hits[0].score >= threshold for one, intent in found),
        outside=_share(one.hits[0].score < threshold for one in strange) if strange else None,
        ms=ms,
    )


def _share(verdicts: Iterable[bool]) -> float:
    said = list(verdicts)
    return sum(said) / len(said)


def _rows(path: Path) -> Asked:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def main() -> None:
    """Print one line a data set, as the README's table has them."""
    parser = argparse.ArgumentParser("python -m bench.retrieval")
    parser.add_argument("folder", type=Path, help="holds banking77/ and clinc150/")
    parser.add_argument("--embedding", type=Path, help="an embedding model: its vectors are used too, their time is not counted")
    options = parser.parse_args()
    folder, settings = options.folder, Settings(knowledge=KnowledgeSettings(embedding_model=options.embedding))
    console.print("| data | R@5 | first | accuracy in scope | out-of-scope recall | ms a question |\n|---|---|---|---|---|---|")
    runs = {"Banking77": (*banking(folder), ()), "CLINC150, validation": clinc(folder, "val"), "CLINC150, test": clinc(folder, "test")}
    for name, (learnt, asked, outside) in runs.items():
        one = measure(learnt, asked, outside, settings=settings)
        beyond = "" if one.outside is None else f"{one.outside:.3f}"
        console.print(f"| {name} | {one.recall_at_5:.3f} | {one.first:.3f} | {one.accuracy:.3f} | {beyond} | {one.ms:.1f} |")


if __name__ == "__main__":
    main()
