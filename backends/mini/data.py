"""The training dialogues, endless and seeded; `python -m backends.mini.data` prints some."""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict

from backends.mini.actions import ActionWriter
from backends.mini.corpus import Split
from backends.mini.dialogues import Example, Kind, ShopWriter
from backends.mini.shop import Language

# More made shops to learn from: the demo shop is soon known.
SHOP_KINDS: dict[Split, dict[Kind, int]] = {
    "train": {"demo": 14, "demo_varied": 14, "made": 72},
    "held": {"demo": 28, "demo_varied": 24, "made": 48},
}
TOOLS_SHARE = 0.2
WITHOUT_PASSAGE = ("small", "small", "none", "none", "clarify")


def families(
    seed: int | str, split: Split, max_passages: int = 10, size: int = 14, tools_share: float = TOOLS_SHARE, small_share: float = 0.0
) -> Iterator[list[Example]]:
    """Yield without end lists of `size` examples that share one shop, half of the lists in each language.

    `small_share` of them are small talk, refusals, vague questions and questions without a passage, beyond those that come anyway.
    """
    rng = random.Random(f"{seed}/{split}")
    while True:
        language: Language = rng.choice(["en", "zh"])
        kind = rng.choices(list(SHOP_KINDS[split]), list(SHOP_KINDS[split].values()))[0]
        make = ActionWriter if rng.random() < tools_share else ShopWriter
        writer = make(rng, language, split, max_passages, kind)
        yield [writer.example(rng.choice(WITHOUT_PASSAGE) if rng.random() < small_share else None) for _ in range(size)]


def main() -> None:
    """Write one JSON object a line, each a dialogue with its right answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=["train", "held"], default="train")
    parser.add_argument("--shops", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for family in itertools.islice(families(args.seed, args.split), args.shops):
        for example in family:
            line = {key: value for key, value in asdict(example).items() if key != "shop"} | {"system": example.system}
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
