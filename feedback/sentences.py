"""Sentences, and passages made of whole ones."""

import re
from collections.abc import Iterator

from feedback.grams import HAN

MAX_WORDS = 120
MAX_HAN = 250
# What goes on for longer without a full stop is a table or a log, and may be parted at a space.
MAX_SENTENCE_CHARS = 1200
END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|No|vs)\.)(?<!\b(?:Mrs|e\.g|i\.e|etc)\.)\s+(?=[^a-z\s])|(?<=[。！？；])\s*|\n+")


def sentences(text: str) -> list[str]:
    """The sentences and list items of a text, in order."""
    return [piece for part in END.split(text) if (whole := part.strip()) for piece in _parted(whole)]


def _parted(sentence: str) -> Iterator[str]:
    while len(sentence) > MAX_SENTENCE_CHARS:
        cut = sentence.rfind(" ", 1, MAX_SENTENCE_CHARS) + 1 or MAX_SENTENCE_CHARS
        yield sentence[:cut].strip()
        sentence = sentence[cut:]
    yield sentence


def size(text: str) -> float:
    """1.0 is a full passage: MAX_WORDS words, MAX_HAN Han characters, or a mixture."""
    num_han = len(HAN.findall(text))
    return num_han / MAX_HAN + len(HAN.sub(" ", text).split()) / MAX_WORDS


def pack(text: str) -> list[str]:
    """The text as passages: as many whole sentences in each as fit, in order. A sentence that is too long alone stands alone."""
    packed: list[list[str]] = []
    room = 0.0
    for sentence in sentences(text):
        needed = size(sentence)
        if needed > room or not packed:
            packed.append([])
            room = 1.0
        packed[-1].append(sentence)
        room -= needed
    return ["".join(_joined(group)) for group in packed]


def _joined(group: list[str]) -> Iterator[str]:
    for before, sentence in zip(["", *group], group, strict=False):
        yield ("" if not before or HAN.match(before[-2:-1]) else " ") + sentence
