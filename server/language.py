"""The language that somebody writes in, and the one that they read."""

import re

from backends.mini.shop import Language
from web import LANGUAGES

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
LATIN_WORD = re.compile(r"[A-Za-z]{2,}")


def detect_language(text: str, default: Language) -> Language:
    """The language `text` is written in; `default` when it says too little (a number, "ok", one foreign word)."""
    num_han, num_latin = len(HAN.findall(text)), len(LATIN_WORD.findall(text))
    if num_han and num_han >= num_latin:
        return "zh"
    return "en" if num_latin >= 2 else default


def choose_language(asked: str | None, accepted: str) -> str:
    """Return the language asked for by `?lang=`, else the best of an Accept-Language header (RFC 9110, 12.5.4), else English."""
    if asked in LANGUAGES:
        return asked
    ranked: list[tuple[float, str]] = []
    for choice in accepted[:1000].split(","):
        tag, _, quality = choice.strip().partition(";q=")
        language = tag.split("-")[0].strip().lower()
        if language in LANGUAGES:
            ranked.append((_quality(quality), language))
    best, language = max(ranked, key=lambda each: each[0], default=(0.0, LANGUAGES[0]))
    return language if best > 0 else LANGUAGES[0]


def _quality(text: str) -> float:
    if not text:
        return 1.0
    return float(text) if text.replace(".", "", 1).isdecimal() and text.isascii() else 0.0
