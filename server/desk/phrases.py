"""Plain phrases, as a policy writes them, found in text."""

import re

MAX_CHARS, MAX_STARS, GAP = 200, 3, 40


def compile_phrase(phrase: str) -> re.Pattern[str]:
    """A pattern for a plain phrase, in any case and spacing, at word borders; `*` stands for up to 40 characters of a sentence.

    Nothing else is special, so that no phrase can be slow. Raises ValueError.
    """
    pieces = [piece.strip() for piece in phrase.split("*")]
    if len(phrase) > MAX_CHARS or not all(pieces) or len(pieces) > MAX_STARS + 1:
        raise ValueError(f"a phrase has words on both sides of each *, at most {MAX_STARS} of them, and at most {MAX_CHARS} characters")
    return re.compile(rf"[^.!?。！？\n]{{0,{GAP}}}?".join(_bounded(piece) for piece in pieces), re.IGNORECASE)


def _bounded(piece: str) -> str:
    words = r"\s+".join(re.escape(word) for word in piece.split())
    before = r"(?<![A-Za-z0-9])" if piece[0].isascii() and piece[0].isalnum() else ""
    return before + words + (r"(?![A-Za-z0-9])" if piece[-1].isascii() and piece[-1].isalnum() else "")
