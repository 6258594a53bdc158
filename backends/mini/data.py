"""Print or write generated dialogues: `python -m backends.mini.data`."""

import argparse
import itertools
import json
import sys
from dataclasses import asdict

from backends.mini.dialogues import families


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
