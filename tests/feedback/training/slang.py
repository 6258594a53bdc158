"""A planted weakness: customers of this shop say "boomerang" for returning something and "trail mail" for the tracking link, which no
model can know.

Rows teach it in training wordings and values; the replay asks in wordings and values that are in no row, and beside it what the rows
must not spoil: everything else that kefu-mini's own held-out dialogues ask.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

from backends.mini.corpus import Split
from backends.mini.data import families
from backends.mini.dialogues import Example, Point, ShopWriter
from backends.mini.score import Generate
from feedback.training.verify import is_right

# By what is meant: a topic and one of its facts.
ASKED: dict[tuple[str, str], dict[Split, list[str]]] = {
    ("returns", "window"): {
        "train": [
            *("how long do I have for a boomerang", "how many days for a boomerang", "what is the boomerang window"),
            *("can I still do a boomerang", "by when must a boomerang be in", "how late can I do a boomerang"),
        ],
        "held": [
            *("what is the boomerang deadline", "until when can I do a boomerang", "tell me the time limit for a boomerang"),
            *("is there a rush with a boomerang", "boomerang, how many days do I get"),
        ],
    },
    ("tracking", "when"): {
        "train": [
            *("when do I get the trail mail", "how many hours for the trail mail", "how soon does the trail mail come"),
            *("I have no trail mail yet, when is it sent", "when is my trail mail sent", "how long does the trail mail take"),
        ],
        "held": [
            *("how long until the trail mail comes", "by when should I have my trail mail", "when will the trail mail be here"),
            *("still waiting for the trail mail, how long is normal", "trail mail, after how many hours"),
        ],
    },
}  # fmt: skip
WRAPS = ("{}?", "{}", "Hi, {}?", "Hello! {}?")
TOPICS = ("returns", "refunds", "shipping", "free_shipping", "tracking")
SAMPLE_SEED = 7


@dataclass(frozen=True)
class Pair:
    """A dialogue with its right output, and with a wrong one: another passage's answer. Both are one where nothing is preferred."""

    right: Example
    wrong: Example


def _shop(rng: random.Random, split: Split) -> ShopWriter:
    """The demo shop's first passages in its own order, with other values."""
    while True:
        writer = ShopWriter(rng, "en", split, kind="demo_varied")
        entries = {entry.topic: entry for entry in writer.entries}
        if entries.keys() >= set(TOPICS):
            writer.entries = [entries[topic] for topic in TOPICS]
            writer.shop = replace(writer.shop, passages=tuple(entry.passage for entry in writer.entries))
            return writer


def _pair(rng: random.Random, split: Split, *, is_slang: bool) -> Pair:
    while True:
        writer = _shop(rng, split)
        points = {(point.entry.topic, point.name): point for point in writer.points()}
        point = points[rng.choice(list(ASKED if is_slang else points))]
        other = rng.choice([each for each in points.values() if each.number != point.number])
        said = _slang(rng, split, point) if is_slang else writer._question(point)
        right, wrong = (writer._on_point("fact", [("user", said)], each) for each in (point, other))
        if right.thought and wrong.thought:
            return Pair(right, wrong)


def _slang(rng: random.Random, split: Split, point: Point) -> str:
    text = rng.choice(ASKED[point.entry.topic, point.name][split])
    return rng.choice(WRAPS).format(text[:1].upper() + text[1:] if rng.random() < 0.5 else text)


def _anything(seed: int) -> Iterator[Pair]:
    """What kefu-mini was made for, in every shop and both languages; wrong is the answer to another question of the same shop."""
    for right, wrong in families(f"rows {seed}", "train", max_passages=5, size=2, tools_share=0.0):
        if right.thought and wrong.thought and right.answers != wrong.answers:
            yield Pair(right, wrong)


def pairs(seed: int, num_slang: int, num_plain: int) -> list[Pair]:
    """Training pairs: the slang, and plain questions, half of them of the same shops; in an order of chance."""
    rng = random.Random(seed)
    made = [_pair(rng, "train", is_slang=number < num_slang) for number in range(num_slang + num_plain // 2)]
    made += islice(_anything(seed), num_plain - num_plain // 2)
    rng.shuffle(made)
    return made


def kept(seed: int, num: int, generate: Generate) -> Iterator[Pair]:
    """Plain questions that the model answers rightly as it is, in its own words: they teach nothing and hold it where it stands."""
    rng, others = random.Random(seed), _anything(seed)
    for number in count():
        asked = (_pair(rng, "train", is_slang=False) if number % 4 == 3 else next(others)).right
        text, has_ended = generate(asked.system, asked.turns, True)
        if has_ended and is_right(text, {"answer": list(asked.answers)}, messages(asked)):
            thought, _, answer = text.partition("\n</think>\n\n")
            same = replace(asked, thought=thought, answers=(answer,))
            yield Pair(same, same)
            num -= 1
        if not num:
            return


def messages(example: Example) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in (("system", example.system), *example.turns)]


def output(example: Example) -> str:
    return f"{example.thought}\n</think>\n\n{example.answers[0]}"


def prompt(example: Example) -> str:
    told = "".join(f"<|im_start|>{said['role']}\n{said['content']}<|im_end|>\n" for said in messages(example))
    return f"{told}<|im_start|>assistant\n<think>\n"


def held(num: int, seed: int = SAMPLE_SEED) -> list[Example]:
    """The slang in wordings and values of no row."""
    rng = random.Random(seed)
    return [_pair(rng, "held", is_slang=True).right for _ in range(num)]


def general(num: int, seed: int = SAMPLE_SEED) -> list[Example]:
    """kefu-mini's own held-out dialogues that need no tools, in both languages."""

    def made() -> Iterator[Example]:
        for family in families(seed, "held", max_passages=5, size=2, tools_share=0.0):
            yield from (example for example in family if example.thought)

    return list(islice(made(), num))


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_export(folder: Path, made: list[Pair]) -> Path:
    """The files of an export that rounds read."""
    talk = [{"prompt": messages(pair.right), "answer": pair.right.answers[0]} for pair in made]
    says = [(output(pair.right), output(pair.wrong)) for pair in made]
    as_message = [[[{"role": "assistant", "content": text}] for text in both] for both in says]
    write_lines(
        folder / "trl" / "dpo" / "train.jsonl",
        [{"prompt": row["prompt"], "chosen": a, "rejected": b} for row, (a, b) in zip(talk, as_message, strict=True)],
    )
    write_lines(folder / "trl" / "grpo" / "train.jsonl", talk)
    ranked = [
        {name: [*messages(pair.right), {"role": "assistant", "content": each.answers[0]}] for name, each in both.items()} | {"margin": 0.5}
        for pair in made
        for both in [{"chosen": pair.right, "rejected": pair.wrong}]
    ]
    for split in ("train", "valid"):
        write_lines(folder / "trl" / "rm" / f"{split}.jsonl", ranked)
    ends = [(prompt(pair.right), *(f"{text}<|im_end|>" for text in both)) for pair, both in zip(made, says, strict=True)]
    write_lines(folder / "trl_rendered" / "dpo" / "train.jsonl", [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in ends])
    unpaired = [{"prompt": p, "completion": text, "label": text is a} for p, a, b in ends for text in (a, b)]
    write_lines(folder / "trl_rendered" / "kto" / "train.jsonl", unpaired)
    return folder


def write_cases(path: Path, examples: list[Example]) -> Path:
    """Prompts with their right answers, as `kefu round evaluate` reads them."""
    return write_lines(path, [{"prompt": messages(example), "answer": list(example.answers)} for example in examples])
