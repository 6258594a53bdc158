"""Score the shipped GGUF on dialogues never trained on: `python -m backends.mini.score`."""

import argparse
import itertools
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.mini.dialogues import Example, families

GGUF = Path(__file__).parent / "weights" / "kefu-mini.gguf"
MAX_NEW_TOKENS = 320
_CITATION = re.compile(r"\[(\d+)\]")
# What must stand in the cited passage: numbers with their points and dashes, and anything with an @ or written like a code.
_FACT = re.compile(r"[\w.]+@[\w.]+\w|[A-Z]{2,}-?\d+|\d+(?:[.:]\d+)*")


@dataclass(frozen=True)
class Result:
    """What the model wrote for one example, and whether that was well formed and right."""

    example: Example
    output: str
    is_formed: bool
    is_right: bool
    is_exact: bool
    is_cited: bool


def is_formed(example: Example, output: str, has_ended: bool) -> bool:
    """Say whether the thought closes once and an answer follows before the end token."""
    if not has_ended or "<think>" in output or "<|" in output:
        return False
    if example.thought is None:
        return "</think>" not in output and bool(output.strip())
    thought, *rest = output.split("</think>")
    return len(rest) == 1 and bool(thought.strip()) and bool(rest[0].strip())


def is_right(example: Example, answer: str) -> bool:
    """Say whether the answer holds the wanted facts, cites the right passage, and adds nothing that is not in it."""
    if not example.cited:
        return answer in example.answers
    if set(_CITATION.findall(answer)) != {str(example.cited)}:
        return False
    passage = example.shop.passages[example.cited - 1]
    said = _FACT.findall(_CITATION.sub("", answer))
    known = set(_FACT.findall(f"{passage.title} {passage.text}"))
    if not set(said) <= known:
        return False
    return all(fact in answer for fact in example.facts) if example.facts else answer in example.answers


def judge(example: Example, output: str, has_ended: bool) -> Result:
    """Compare one output with what was wanted."""
    answer = output.split("</think>")[-1].strip()
    formed = is_formed(example, output, has_ended)
    cited = set(_CITATION.findall(answer)) == ({str(example.cited)} if example.cited else set())
    return Result(example, output, formed, formed and is_right(example, answer), formed and answer in example.answers, cited)


def held_out(seed: int, limit: int) -> list[Example]:
    """Return `limit` examples from held-out shops, phrasings and values; every third is about the demo shop."""
    made = (example for family in families(seed, "held", size=2) for example in family)
    demo = (example for example in made if example.kind == "demo")
    other = (example for example in made if example.kind == "made")
    return [next(demo if number % 3 == 0 else other) for number in range(limit)]


def generate(model: Any, example: Example) -> tuple[str, bool]:
    """Return the greedy output and whether it ended by itself."""

    def ids(text: str, special: bool = False) -> list[int]:
        return list(model.tokenize(text.encode(), add_bos=False, special=special))

    def message(role: str, content: str) -> list[int]:
        return ids("<|im_start|>", True) + ids(f"{role}\n{content}") + ids("<|im_end|>", True) + ids("\n")

    prompt = [token for role, content in (("system", example.system), *example.turns) for token in message(role, content)]
    prompt += ids("<|im_start|>", True) + ids("assistant\n") + ids("<think>", True)
    prompt += ids("\n") if example.thought is not None else ids("\n\n") + ids("</think>", True) + ids("\n\n")
    out: list[int] = []
    for token in itertools.islice(model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0), MAX_NEW_TOKENS):
        if token == model.token_eos():
            return model.detokenize(out, special=True).decode(errors="replace"), True
        out.append(token)
    return model.detokenize(out, special=True).decode(errors="replace"), False


def table(results: Iterable[Result]) -> str:
    """Return a Markdown table: a row per language and behaviour, and one per group."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        example = result.example
        names = ["all", example.behaviour, "the demo shop" if example.kind == "demo" else "other shops"]
        for name in [*names, "needs a passage" if example.cited else "needs none"]:
            groups[example.language, name].append(result)
            groups["both", name].append(result)
    lines = ["| language | behaviour | dialogues | well formed | right | right passage | word for word |", "|---|---|---|---|---|---|---|"]
    for (language, name), found in sorted(groups.items()):
        shares = ["is_formed", "is_right", "is_cited", "is_exact"]
        cells = [f"{100 * sum(getattr(r, share) for r in found) / len(found):.1f}%" for share in shares]
        lines.append(f"| {language} | {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def worst(results: list[Result], count: int = 20) -> list[Result]:
    """Return failures, the malformed first."""
    return sorted((r for r in results if not r.is_right), key=lambda r: r.is_formed)[:count]


def main() -> None:
    """Parse arguments, generate, print the table and the worst answers."""
    from llama_cpp import Llama

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=600, help="how many dialogues")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--model", type=Path, default=GGUF)
    args = parser.parse_args()
    model = Llama(str(args.model), n_ctx=4096, n_threads=2, verbose=False)
    results = [judge(example, *generate(model, example)) for example in held_out(args.seed, args.limit)]
    sys.stdout.write(table(results) + "\n")
    for result in worst(results):
        example = result.example
        shown = {"behaviour": example.behaviour, "asked": example.turns[-1][1], "wanted": example.answers[0], "wrote": result.output}
        sys.stdout.write(json.dumps(shown, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
