"""The language that somebody writes in."""

import re

from backends.mini.shop import Language

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
LATIN_WORD = re.compile(r"[A-Za-z]{2,}")


def detect_language(text: str, default: Language) -> Language:
    """The language `text` is written in; `default` when it says too little (a number, "ok", one foreign word)."""
    num_han, num_latin = len(HAN.findall(text)), len(LATIN_WORD.findall(text))
    if num_han and num_han >= num_latin:
        return "zh"
    return "en" if num_latin >= 2 else default
