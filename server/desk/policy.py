"""The policy in force: what the assistant is told, in which language, and what an answer may point at and rest on."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from backends.mini.shop import Language, Passage, Shop, system_message
from feedback.record import Citation
from server.desk.checks import Evidence, Rules
from server.desk.policy_file import Terms

Policies = Mapping[Language, "Policy"]

FALLBACK: dict[Language, str] = {
    "en": "I'm sorry, I could not find an answer. Please put your question in other words, or ask for a person from our team.",
    "zh": "很抱歉，我没能给出答案。请换一种说法再问一次，或联系我们的人工客服。",
}
# What the customer reads when two answers in a row have failed the policy's checks.
OFFER: dict[Language, str] = {
    "en": "I'm sorry, I am not sure enough of my answer to give it to you. Shall I pass your question to a person from our team?",
    "zh": "很抱歉，我对自己的答案没有把握，不想误导您。要不要我把问题转给我们的人工客服？",
}
CITATION = re.compile(r" *\[(\d{1,2})\]")
CITATION_BEGUN = re.compile(r" +$| *\[\d{0,2}$")


@dataclass(frozen=True, slots=True)
class Policy:
    """One language's system message and terms. The versions are hashes: of the policy file (without one, the persona), of the passages."""

    language: Language
    system: str
    passages: tuple[Passage, ...]
    version: str
    knowledge_version: str
    rules: Rules
    terms: Terms | None = None

    @classmethod
    def of(cls, shop: Shop, language: Language, terms: Terms | None = None) -> "Policy":
        """The shop's passages under `terms`; without terms its own persona, and the checks that need none."""
        knowledge = "\0".join(f"{passage.id}\0{passage.title}\0{passage.text}" for passage in shop.passages)
        shop = replace(shop, persona=terms.persona) if terms else shop
        version, rules = (terms.version, terms.rules) if terms else (_sha256(shop.persona), Rules(secrets=(shop.persona,)))
        return cls(language, system_message(shop, language), shop.passages, version, _sha256(knowledge), rules, terms)

    def evidence(self, said: Iterable[str], tools: Iterable[str] = (), answers: Iterable[str] = ()) -> Evidence:
        """What an answer may rest on when this was `said` in the conversation and `tools` have told that; it is to be none of `answers`."""
        stated = (f"{passage.title}: {passage.text}" for passage in self.passages)
        facts, promises = (self.terms.facts, self.terms.promises) if self.terms else ((), ())
        return Evidence((*stated, *facts), promises, tuple(tools), tuple(said), tuple(answers))

    def completed(self, answer: str, question: str) -> str:
        """The answer with what the policy wants said to such a question."""
        return self.terms.completed(answer, question) if self.terms else answer

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
