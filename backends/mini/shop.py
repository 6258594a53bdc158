"""The demo shop: its name, persona and passages, and the system message every shop's prompt begins with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Language = Literal["en", "zh"]

SHOP_FOLDER = Path(__file__).parent / "shop"


@dataclass(frozen=True, slots=True)
class Passage:
    """One piece of shop knowledge; `id` is the same in every language."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Shop:
    """What one shop tells its assistant, in one language."""

    name: str
    persona: str
    greeting: str
    suggestions: tuple[str, ...]
    passages: tuple[Passage, ...]


def load_shop(language: Language) -> Shop:
    """Return the demo shop in `language`. Raises FileNotFoundError for a language it does not speak."""
    data = json.loads((SHOP_FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    return Shop(
        name=data["shop"],
        persona=data["persona"],
        greeting=data["greeting"],
        suggestions=tuple(data["suggestions"]),
        passages=tuple(Passage(**passage) for passage in data["passages"]),
    )


def system_message(shop: Shop, language: Language, tools: tuple[str, ...] = ()) -> str:
    """Return persona, numbered passages and tools (JSON schemas) as the model was trained to read them; passages count from 1."""
    heading = "Passages:" if language == "en" else "资料："
    lines = [passage_line(number, passage.title, passage.text, language) for number, passage in enumerate(shop.passages, 1)]
    offered = ["", "# Tools", *tools] if tools else []
    return "\n".join([shop.persona, "", heading, *lines, *offered])


def passage_line(number: int, title: str, text: str, language: Language) -> str:
    """Return one passage as a prompt shows it; the number follows the title, so that it is met by who has read that."""
    return f"{title} {quoted(number, text, language)}"


def quoted(number: int, text: str, language: Language) -> str:
    """Return a passage's number and text, or a part of it, as a thought repeats them."""
    return f"[{number}]{': ' if language == 'en' else '：'}{text}"
