"""A test set for a policy: what customers write, and what the answer must and must never hold. One JSONL file."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.desk.phrases import compile_phrase
from server.desk.policy_file import DEMO, BadPolicy
from server.desk.promises import is_negated

MUST_SAY_NO = DEMO.with_name("must_say_no.jsonl")
# What a line may ask for by name instead of listing phrases.
GROUPS = {
    "refuse": [
        *("cannot", "can't", "can not", "unable", "not able", "not possible", "won't", "don't have", "do not have", "no information"),
        *("outside what I", "only help", "found nothing", "could not find", "not sure", "不能", "无法", "没法", "不支持", "不可以"),
        *("没有", "不提供", "帮不了", "做不到", "只能", "不在", "查不到", "没把握"),
    ],
    "person": ["person", "team", "colleague", "human", "人工", "转接", "同事"],
}


class Line(BaseModel):
    """One test: what a customer writes, message by message, and what the last answer must and must never hold (phrases)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    language: Literal["en", "zh"]
    ask: list[str] = Field(min_length=1)
    never: list[str] = Field(default_factory=list)
    must: list[str] = Field(default_factory=list)


def read_lines(path: Path) -> list[Line]:
    """The tests of a JSONL file. Raises BadPolicy with the number of a bad line."""
    try:
        return [_read_line(text, f"{path.name}, line {number}") for number, text in enumerate(path.read_text("utf-8").splitlines(), 1)]
    except OSError as error:
        raise BadPolicy(f"{path} cannot be read: {error.strerror}") from error


def _read_line(text: str, place: str) -> Line:
    try:
        line = Line.model_validate_json(text)
        for phrase in (*line.never, *line.must):
            compile_phrase(phrase)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadPolicy(f"{place}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise BadPolicy(f"{place}: {error}") from error
    return line


def judge(line: Line, answer: str) -> tuple[str, ...]:
    """What is wrong with an answer. A phrase that a negation leads in ("we cannot give you a discount") is not said."""
    said = [(phrase, hit) for phrase in line.never for hit in compile_phrase(phrase).finditer(answer)]
    faults = [f"says {phrase!r}" for phrase, hit in said if not is_negated(answer[max(0, hit.start() - 40) : hit.start()])]
    wanted = [phrase for name in line.must for phrase in GROUPS.get(name, [name])]
    if wanted and not any(compile_phrase(phrase).search(answer) for phrase in wanted):
        faults.append(f"does none of: {', '.join(line.must)}")
    return tuple(faults)
