"""The policy file: what the assistant is told, what it may promise, what it must and must not say. One TOML file a shop."""

import hashlib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from backends.mini.shop import Language
from server.desk.checks import Rules
from server.desk.phrases import compile_phrase
from server.desk.quantities import read
from server.errors import InvalidRequest

DEMO = Path(__file__).parent / "demo" / "policy.toml"
MAX_BYTES = 256 * 1024
WRONG = {"extra_forbidden": "is not known", "model_type": "must be a table", "model_attributes_type": "must be a table"}
LANGUAGES: tuple[Language, ...] = ("en", "zh")


class BadPolicy(InvalidRequest):
    """The policy file cannot be used; the message has one sentence a fault, each with its line and key."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="bad_policy")


def _phrase(text: str) -> str:
    compile_phrase(text)
    return text


Text = Annotated[str, Field(min_length=1, max_length=4000)]
Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,39}$")]
Phrases = Annotated[list[Annotated[str, AfterValidator(_phrase)]], Field(max_length=200)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Said(_Part):
    """The same in both languages."""

    en: Text
    zh: Text

    @model_validator(mode="after")
    def _numbers_agree(self) -> "Said":
        en, zh = ({quantity.key for quantity in read(text)} for text in (self.en, self.zh))
        if en != zh:
            raise ValueError("en and zh do not say the same numbers")
        return self


class Listed(_Part):
    """Phrases in both languages."""

    en: Phrases = Field(default_factory=list)
    zh: Phrases = Field(default_factory=list)


class Lengths(_Part):
    """Characters of an answer."""

    en: int = Field(900, ge=50, le=20_000)
    zh: int = Field(400, ge=50, le=20_000)


class MustSay(_Part):
    """A sentence that is added to the greeting, or to the answer of a question with one of `when`, unless one of `unless` stands there."""

    when: Literal["greeting"] | Listed
    say: Said
    unless: Listed = Listed()


class PolicyFile(_Part):
    """A policy as it is written. `tone` is told to the model after the persona; with `tell_model` facts and prohibitions are too."""

    persona: Said
    tone: Said | None = None
    tell_model: bool = False
    max_answer_chars: Lengths = Lengths()
    facts: dict[Name, Said] = Field(default_factory=dict)
    promises: dict[Name, Said] = Field(default_factory=dict)
    must_say: dict[Name, MustSay] = Field(default_factory=dict)
    must_not_say: Listed = Listed()
    handover: dict[Name, Listed] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Terms:
    """A policy in one language, ready for use. `version` is the SHA-256 of the file's bytes."""

    language: Language
    version: str
    persona: str
    facts: tuple[str, ...]
    promises: tuple[str, ...]
    rules: Rules
    file: PolicyFile

    def greeting(self, words: str) -> str:
        """The shop's greeting with what it must say."""
        due = (must for must in self.file.must_say.values() if must.when == "greeting")
        return self._with(words, due)

    def completed(self, answer: str, question: str) -> str:
        """An answer with what an answer to this question must say."""
        due = (must for must in self.file.must_say.values() if must.when != "greeting" and self._hits(must.when, question))
        return self._with(answer, due)

    def handover_reason(self, message: str) -> str | None:
        """Why a customer who writes this should get a person; None when the policy names no reason."""
        return next((reason for reason, phrases in self.file.handover.items() if self._hits(phrases, message)), None)

    def _with(self, words: str, due: Iterable[MustSay]) -> str:
        missing = [getattr(must.say, self.language) for must in due if not self._hits(must.unless, words)]
        return (" " if self.language == "en" else "").join([words, *missing])

    def _hits(self, phrases: Listed, text: str) -> bool:
        """In either language: a customer may mix them."""
        return any(compile_phrase(phrase).search(text) for phrase in (*phrases.en, *phrases.zh))


def load_policy(path: Path) -> dict[Language, Terms]:
    """Read a policy file. Raises BadPolicy."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadPolicy(f"{path} cannot be read: {error.strerror}") from error
    return parse_policy(content, path.name)


def parse_policy(content: bytes, name: str = "policy.toml") -> dict[Language, Terms]:
    """The policy that `content` spells, in each language. Raises BadPolicy with every fault on a line of its own."""
    if len(content) > MAX_BYTES:
        raise BadPolicy(f"{name} is larger than {MAX_BYTES // 1024} KiB")
    try:
        text = content.decode("utf-8")
        file = PolicyFile.model_validate(tomllib.loads(text))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadPolicy(f"{name} is no TOML: {error}") from error
    except ValidationError as error:
        raise BadPolicy("\n".join(sentences(error, text, name))) from error
    version = hashlib.sha256(content).hexdigest()
    return {language: _terms(file, language, version) for language in LANGUAGES}


def _terms(file: PolicyFile, language: Language, version: str) -> Terms:
    def each(named: dict[str, Said]) -> tuple[str, ...]:
        return tuple(getattr(said, language) for said in named.values())

    never = getattr(file.must_not_say, language)
    told = [getattr(file.tone, language)] if file.tone else []
    if file.tell_model:
        forbidden = {"en": "Never say: ", "zh": "禁止说："}[language] + "; ".join(never)
        told += [*each(file.facts), *each(file.promises), *([forbidden] if never else [])]
    persona = "\n".join([getattr(file.persona, language), *told])
    # Facts are told to customers; the rest of what the model is told is between the shop and the model.
    secrets = tuple(part for part in persona.split("\n") if part not in each(file.facts) + each(file.promises))
    rules = Rules(getattr(file.max_answer_chars, language), tuple((phrase, compile_phrase(phrase)) for phrase in never), secrets)
    return Terms(language, version, persona, each(file.facts), each(file.promises), rules, file)


def sentences(error: ValidationError, text: str, name: str) -> list[str]:
    """Every fault of a TOML file with its line and key."""
    said = {}
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        # A choice between two shapes puts the shape's name into the path; keys of the file are plain words.
        path = [str(part) for part in fault["loc"] if re.fullmatch(r"[a-z0-9_]+", str(part))] or ["the file"]
        wrong = WRONG.get(fault["type"], fault["msg"].removeprefix("Value error, "))
        said[".".join(path)] = f"{name}, line {_line_of(path, text)}: {'.'.join(path)}: {wrong}"
    return list(said.values())


def _line_of(path: list[str], text: str) -> int:
    """The line where the last key of the path that the file has begins."""
    place = 0
    for key in path:
        found = re.compile(rf"(?<![\w.\"']){re.escape(key)}(?=[\w.\s]*[\]=.])|(?<=\.){re.escape(key)}(?=[.\]\s=])").search(text, place)
        place = found.start() if found else place
    return text.count("\n", 0, place) + 1
