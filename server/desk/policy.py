"""The policy: what the assistant is told, in which language, and which passages an answer may point at."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from backends.mini.shop import Language, Passage, Shop, system_message
from feedback.record import Citation

Policies = Mapping[Language, "Policy"]

FALLBACK: dict[Language, str] = {
    "en": "I'm sorry, I could not find an answer. Please put your question in other words, or ask for a person from our team.",
    "zh": "很抱歉，我没能给出答案。请换一种说法再问一次，或联系我们的人工客服。",
}
CITATION = re.compile(r" *\[(\d{1,2})\]")
CITATION_BEGUN = re.compile(r" +$| *\[\d{0,2}$")


@dataclass(frozen=True, slots=True)
class Policy:
    """One language's system message. The versions are hashes of content: persona and rules, and the passages."""

    language: Language
    system: str
    passages: tuple[Passage, ...]
    version: str
    knowledge_version: str

    @classmethod
    def of(cls, shop: Shop, language: Language) -> "Policy":
        knowledge = "\0".join(f"{passage.id}\0{passage.title}\0{passage.text}" for passage in shop.passages)
        return cls(language, system_message(shop, language), shop.passages, _sha256(shop.persona), _sha256(knowledge))

    def has(self, number: int) -> bool:
        return 1 <= number <= len(self.passages)

    def citations(self, answer: str) -> tuple[Citation, ...]:
        """What `answer` cites, by number, each once."""
        numbers = sorted({int(number) for number in CITATION.findall(answer)})
        cited = ((number, self.passages[number - 1]) for number in numbers if self.has(number))
        return tuple(Citation(number, passage.id, passage.title, passage.text) for number, passage in cited)


class CitationFilter:
    """Takes `[n]` out of a streamed answer where there is no passage n: a source that does not exist is not shown.

    What comes out of `feed` and `flush`, joined, does not depend on how the text was cut.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._held = ""

    def feed(self, text: str) -> str:
        """The text that is certain by now; what may still become a citation waits."""
        text = self._held + text
        begun = CITATION_BEGUN.search(text)
        self._held = begun.group() if begun else ""
        return CITATION.sub(self._keep_known, text[: len(text) - len(self._held)])

    def flush(self) -> str:
        rest, self._held = self._held, ""
        return rest

    def _keep_known(self, match: re.Match[str]) -> str:
        return match.group() if self._policy.has(int(match.group(1))) else ""


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
