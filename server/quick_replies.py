"""Quick replies: what a clarifying question lets the customer choose from, ready to be sent with one press."""

import re

MAX_REPLIES, MAX_CHARS = 4, 60
_QUESTION = re.compile(
    r"\b(?:do you mean|did you mean|are you asking about|is (?:it|this) about|would you like)\s+([^?]+?),?\s+or\s+([^?]+)\?\s*$"
    r"|(?:想问的是|想问|指的是|是指|问的是|是说)\s*([^？?]+?)[，,]?\s*还是\s*([^？?]+)[？?]\s*$",
    re.IGNORECASE,
)
_BETWEEN = re.compile(r",\s+|、")


def quick_replies(answer: str) -> list[str]:
    """The choices that end an answer, at most MAX_REPLIES; none when it asks for none, or when one is too long to be pressed."""
    found = _QUESTION.search(answer[-MAX_REPLIES * MAX_CHARS :])
    if found is None:
        return []
    first, last = [part for part in found.groups() if part is not None]
    choices = [choice.strip() for choice in (*_BETWEEN.split(first), last)]
    is_short = len(choices) <= MAX_REPLIES and all(0 < len(choice) <= MAX_CHARS for choice in choices)
    return list(dict.fromkeys(choice[0].upper() + choice[1:] for choice in choices)) if is_short else []
