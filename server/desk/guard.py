"""The guard between the model and the customer: an answer passes sentence by sentence, each after its checks."""

import re
from dataclasses import replace

from backends.mini.shop import Language
from server.desk.checks import Evidence, Rules, Violation, check, check_leak, check_length, check_loop, check_repeat

# A full stop ends a sentence once a space follows; the one of "1. " and of "No. 5" ends none.
_END = re.compile(r"(?<!\n\d\.)(?<!\n\d\d\.)(?<!^\d\.)(?<!\bNo\.)(?<=[.!?…])[\"”')]*\s|[。！？；…]+[”」）]*|\n")

Noted = list[dict[str, str]]


class Guard:
    """One answer's. What `feed` and `flush` give, joined, does not depend on how the text was cut; after a violation it is nothing."""

    def __init__(self, evidence: Evidence, rules: Rules, language: Language) -> None:
        self.violations: list[Violation] = []
        self._evidence = evidence
        self._rules = rules
        self._language = language
        self._passed = self._held = ""

    def feed(self, text: str) -> str:
        """The sentences that are whole by now and pass."""
        self._held += text
        released = ""
        while not self.violations and (end := _END.search(self._held)):
            sentence, self._held = self._held[: end.end()], self._held[end.end() :]
            released += self._pass(sentence)
        return released

    def flush(self) -> str:
        """The rest, when it passes: the answer is over."""
        rest, self._held = self._held, ""
        released = self._pass(rest) if rest and not self.violations else ""
        self.violations = self.violations or check_repeat(self._passed, self._evidence)
        return "" if self.violations else released

    def _pass(self, sentence: str) -> str:
        """Numbers and promises are a sentence's own; what leaks or grows too long shows in the whole."""
        start, whole = len(self._passed), self._passed + sentence
        found = check(sentence, self._evidence, self._rules, self._language)
        found = [replace(one, span=(one.span[0] + start, one.span[1] + start)) for one in found]
        seen = {one.kind for one in found}
        for one in (*check_leak(whole, self._evidence, self._rules), *check_length(whole, self._rules), *check_loop(whole)):
            if one.kind not in seen:
                found.append(one)
        self.violations, self._passed = found, whole
        return "" if found else sentence

    def noted(self) -> Noted:
        """The violations as the record keeps them."""
        return [{"kind": one.kind, "text": self._passed[slice(*one.span)], "detail": one.detail} for one in self.violations]


def review(text: str, evidence: Evidence, rules: Rules, language: Language) -> Noted:
    """Everything that a guard would end this answer for, sentence by sentence: for somebody who may mend it."""
    found = Noted()
    while text:
        guard = Guard(evidence, rules, language)
        guard.feed(text)
        guard.flush()
        found += guard.noted()
        text = text[len(guard._passed) :]
    return found
