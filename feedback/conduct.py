"""How a customer behaves: do they swear, abuse, or give orders to the model? What such people press and say is no teacher.

Praise of abusive users makes models worse, and most toxic feedback is praise of what a jailbreak got (Liu et al. 2025).
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal, get_args

WORDS = Path(__file__).with_name("conduct.toml")
Manner = Literal["jailbreak", "abuse", "heated"]
HOSTILE: frozenset[Manner] = frozenset({"jailbreak", "abuse"})
# The desk takes 4,000 characters; normal forms may be longer than what was typed.
MAX_CHARS = 8000
# So many heated turns are no temper any more.
NUM_HEATED = 3
# Characters that nobody sees keep a word from being found.
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")


@cache
def patterns() -> dict[Manner, re.Pattern[str]]:
    """conduct.toml, ready for use, the gravest manner first: customers mix languages, so either is read in both."""
    told = tomllib.loads(WORDS.read_text(encoding="utf-8"))
    return {manner: re.compile("|".join(told[manner]["en"] + told[manner]["zh"])) for manner in get_args(Manner)}


def manner(text: str) -> Manner | None:
    """The gravest that one turn is, or None. Time grows with the length of the text only."""
    line = unicodedata.normalize("NFKC", _UNSEEN.sub("", text[:MAX_CHARS])).lower().replace("\u2019", "'")
    line = " ".join(line.split())
    return next((name for name, pattern in patterns().items() if pattern.search(line)), None)


def conduct(said: Iterable[str]) -> Manner | None:
    """How a customer behaves in a conversation, by all that they say in it, comments on votes too."""
    found = [manner(text) for text in said]
    if "heated" in found and found.count("heated") >= NUM_HEATED:
        found.append("abuse")
    return next((name for name in patterns() if name in found), None)
