"""Is an answer right? Rules over the gold answer and the cited passages, stricter than the rewards: all or nothing."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

CITATION = re.compile(r"\[(\d+)\]")
# What an answer may not invent: addresses, codes, and numbers with their points and dashes.
FACT = re.compile(r"[\w.]+@[\w.]+\w|[A-Z]{2,}-?\d+|\d+(?:[.:]\d+)*")
_OPENING = r"^[^\n]*? \[(\d+)\](?:: |：)"
_PASSAGE = re.compile(rf"{_OPENING}(.*?)(?={_OPENING}|\n# Tools|<\|im_end\|>|\Z)", re.MULTILINE | re.DOTALL)
Prompt = str | Sequence[Mapping[str, str]]


def answer_of(text: str) -> str:
    """What follows the thought, without its end token."""
    return text.rpartition("</think>")[2].removesuffix("<|im_end|>").strip()


def is_right(text: str, row: Mapping[str, Any], prompt: Prompt) -> bool:
    """Say whether the answer holds the gold answer's facts, cites what that cites, and adds no number that its passages do not hold.

    `row` has `answer`: the gold text, or a list of texts of which one will do; and perhaps `must_not_contain`. A gold answer with neither
    fact nor citation must be met word by word. Passages are read from the prompt, rendered or as messages (there: the system's).
    """
    answer, golds = answer_of(text), row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    if not answer or any(phrase in answer for phrase in row.get("must_not_contain") or ()):
        return False
    system = prompt if isinstance(prompt, str) else "\n".join(said["content"] for said in prompt if said["role"] == "system")
    passages = {found[1]: found[0] for found in _PASSAGE.finditer(system)}
    return any(_meets(answer, answer_of(gold), passages) for gold in golds)


def _meets(answer: str, gold: str, passages: Mapping[str, str]) -> bool:
    cited, wanted, said = set(CITATION.findall(gold)), _facts(gold), _facts(answer)
    if not cited and not wanted:
        return _plain(answer) == _plain(gold)
    known = wanted.union(*(_facts(passages.get(number, "")) for number in cited))
    # A citation alone does not make an answer right where there is no fact to tell it by.
    return set(CITATION.findall(answer)) == cited and wanted <= said <= known and bool(wanted or _plain(answer) == _plain(gold))


def _facts(text: str) -> set[str]:
    return set(FACT.findall(CITATION.sub("", text)))


def _plain(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalnum())
