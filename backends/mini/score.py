"""Score the shipped GGUF on dialogues never trained on, made and written by hand: `python -m backends.mini.score`."""

import argparse
import itertools
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.mini.corpus import fill, slots, tables
from backends.mini.data import families
from backends.mini.dialogues import Example, Turn
from backends.mini.shop import Language, load_shop, system_message

HERE = Path(__file__).parent
GGUF = HERE / "weights" / "kefu-mini.gguf"
BY_HAND = HERE / "hand.jsonl"
MAX_NEW_TOKENS = 320
_CITATION = re.compile(r"\[(\d+)\]")
_CALL = re.compile(r'<tool_call>\s*\{"name": "(\w+)"')
# What must stand in the cited passage: numbers with their points and dashes, and anything with an @ or written like a code.
_FACT = re.compile(r"[\w.]+@[\w.]+\w|[A-Z]{2,}-?\d+|\d+(?:[.:]\d+)*")
# Which of our behaviours count as which action of the set written by hand.
ACTIONS = {
    "refuse": ("offtopic", "inject", "language"),
    "person": ("person", "insult"),
    "small": ("greeting", "thanks", "bye", "bot", "junk"),
}
Generate = Callable[[str, tuple[Turn, ...], bool], tuple[str, bool]]


@dataclass(frozen=True)
class Result:
    """What the model wrote for one dialogue, and whether that was well formed, did the right thing and was right."""

    language: Language
    groups: tuple[str, ...]
    asked: str
    wanted: str
    output: str
    is_formed: bool
    is_action: bool
    is_right: bool
    is_grounded: bool


def is_formed(thinking: bool, output: str, has_ended: bool) -> bool:
    """Say whether the thought closes once and an answer follows before the end token."""
    if not has_ended or "<think>" in output or "<|" in output:
        return False
    if not thinking:
        return "</think>" not in output and bool(output.strip())
    thought, *rest = output.split("</think>")
    return len(rest) == 1 and bool(thought.strip()) and bool(rest[0].strip())


def is_grounded(answer: str, passages: list[str]) -> bool:
    """Say whether every number, code and address of a citing answer stands in what it cites."""
    cited = [int(number) for number in _CITATION.findall(answer)]
    if not all(1 <= number <= len(passages) for number in cited):
        return False
    known = {fact for number in cited for fact in _FACT.findall(passages[number - 1])}
    return not cited or set(_FACT.findall(_CITATION.sub("", answer))) <= known


def is_right(example: Example, answer: str) -> bool:
    """Say whether the answer holds the wanted facts, cites the right passage, and adds nothing that is not in it."""
    if not example.cited or "json" in example.behaviour:
        return answer in example.answers
    passages = [f"{passage.title} {passage.text}" for passage in example.shop.passages]
    if set(_CITATION.findall(answer)) != {str(example.cited)} or not is_grounded(answer, passages):
        return False
    return all(fact in answer for fact in example.facts) if example.facts else answer in example.answers


def action_of(answer: str, language: Language, shop: str) -> str:
    """Name what an answer to a customer of `shop` does: call NAME, answer, clarify, absent, refuse, person, small, or other."""
    table = tables(language)
    if call := _CALL.match(answer):
        return f"call {call[1]}"
    if _CITATION.search(answer):
        return "answer"
    if answer in table["talk"]["none"]:
        return "absent"
    if any(re.fullmatch(re.sub(r"\\\{\w+\\\}", ".+", re.escape(known)), answer) for known in table["talk"]["clarify"]):
        return "clarify"
    for action, behaviours in ACTIONS.items():
        templates = [template for behaviour in behaviours for template in table["small"][behaviour]["answer"]]
        if any(answer == fill(template, {"shop": shop}) for template in templates if set(slots(template)) <= {"shop"}):
            return action
    return "other"


def judge(example: Example, output: str, has_ended: bool) -> Result:
    """Compare one output with what was wanted."""
    answer = output.split("</think>")[-1].strip()
    formed = is_formed(example.thought is not None, output, has_ended)
    passages = [f"{passage.title} {passage.text}" for passage in example.shop.passages]
    actions = [action_of(text, example.language, example.shop.name) for text in (answer, example.answers[0])]
    is_same_kind = actions[0] == actions[1] != "other"
    names = ("all", example.behaviour, "the demo shop" if example.kind == "demo" else "other shops")
    right = formed and is_right(example, answer)
    return Result(
        example.language, (*names, "needs a passage") if example.cited else (*names, "needs none"), example.turns[-1][1],
        example.answers[0], output, formed, formed and (is_same_kind or right), right, formed and is_grounded(answer, passages),
    )  # fmt: skip


def held_out(seed: int, limit: int) -> list[Example]:
    """Return `limit` examples from held-out shops, phrasings and values; every third is about the demo shop."""
    made = (example for family in families(seed, "held", size=2) for example in family)
    demo = (example for example in made if example.kind == "demo")
    other = (example for example in made if example.kind == "made")
    return [next(demo if number % 3 == 0 else other) for number in range(limit)]


def judge_by_hand(generate: Generate, line: dict[str, Any]) -> Result:
    """Let the model answer each message of one dialogue written by hand, and judge the last answer."""
    language, shop = line["language"], load_shop(line["language"])
    turns: tuple[Turn, ...] = ()
    output, has_ended = "", False
    for said in line["turns"]:
        turns += (("user", said),)
        output, has_ended = generate(system_message(shop, language), turns, True)
        turns += (("assistant", output.split("</think>")[-1].strip()),)
    answer = turns[-1][1]
    formed = is_formed(True, output, has_ended)
    action = action_of(answer, language, shop.name)
    wanted = str([passage.id for passage in shop.passages].index(line["passage"]) + 1) if line["passage"] else ""
    right = action == line["action"] and (not wanted or wanted in _CITATION.findall(answer)) and all(f in answer for f in line["facts"])
    grounded = is_grounded(answer, [f"{passage.title} {passage.text}" for passage in shop.passages])
    asked, expected = " / ".join(line["turns"]), f"{line['action']} {wanted} {line['facts']}"
    verdicts = [formed and verdict for verdict in (True, action == line["action"], right, grounded)]
    return Result(language, ("all", line["action"]), asked, expected, output, *verdicts)


def generator(model: Any) -> Generate:
    """Return a function from system message, turns and thinking to the greedy output and whether it ended by itself."""

    def ids(text: str, special: bool = False) -> list[int]:
        return list(model.tokenize(text.encode(), add_bos=False, special=special))

    def message(role: str, content: str) -> list[int]:
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        body = ids(f"{role}\n") + ids(content, special=role == "assistant")
        return ids("<|im_start|>", True) + body + ids("<|im_end|>", True) + ids("\n")

    def generate(system: str, turns: tuple[Turn, ...], thinking: bool) -> tuple[str, bool]:
        prompt = [token for role, content in (("system", system), *turns) for token in message(role, content)]
        prompt += ids("<|im_start|>", True) + ids("assistant\n") + ids("<think>", True)
        prompt += ids("\n") if thinking else ids("\n\n") + ids("</think>", True) + ids("\n\n")
        out: list[int] = []
        for token in itertools.islice(model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0), MAX_NEW_TOKENS):
            if token == model.token_eos():
                return model.detokenize(out, special=True).decode(errors="replace"), True
            out.append(token)
        return model.detokenize(out, special=True).decode(errors="replace"), False

    return generate


def table(results: Iterable[Result]) -> str:
    """Return a Markdown table: a row per language and group."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        for name in result.groups:
            groups[result.language, name].append(result)
            groups["both", name].append(result)
    lines = ["| language | group | dialogues | well formed | right action | grounded | right |", "|---|---|---|---|---|---|---|"]
    for (language, name), found in sorted(groups.items()):
        shares = ["is_formed", "is_action", "is_grounded", "is_right"]
        cells = [f"{100 * sum(getattr(r, share) for r in found) / len(found):.1f}%" for share in shares]
        lines.append(f"| {language} | {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def worst(results: list[Result], count: int = 20) -> list[Result]:
    """Return failures, the malformed first."""
    return sorted((r for r in results if not r.is_right), key=lambda r: (r.is_formed, r.is_action))[:count]


def main() -> None:
    """Parse arguments, generate, print both tables and the worst answers of each."""
    from llama_cpp import Llama

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=600, help="how many made dialogues")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=GGUF)
    args = parser.parse_args()
    generate = generator(Llama(str(args.model), n_ctx=4096, n_threads=args.threads, verbose=False))
    made = [judge(e, *generate(e.system, e.turns, e.thought is not None)) for e in held_out(args.seed, args.limit)]
    by_hand = [judge_by_hand(generate, json.loads(line)) for line in BY_HAND.read_text(encoding="utf-8").splitlines()]
    for title, results in (("Made", made), ("By hand", by_hand)):
        sys.stdout.write(f"\n{title}\n\n{table(results)}\n\n")
        for result in worst(results):
            shown = {"asked": result.asked, "wanted": result.wanted, "wrote": result.output}
            sys.stdout.write(json.dumps(shown, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
