"""Answers of a given shape, JSON by a schema or calls of tools, as the grammars that the engine follows."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from server.chat.tools import CALL_CLOSE, CALL_OPEN, ToolUse

# How models are trained to write JSON. Free white space is where small ones get lost.
_SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_COMBINED = {"$ref", "anyOf", "oneOf", "allOf", "patternProperties"}
_MAX_CALLS = 16
_BEFORE_NAME, _ARGUMENTS, _AFTER_ARGUMENTS, _NEWLINE = '\n{"name": ', '"arguments": ', "}\n", "\n"
# What llguidance says of a schema, and what we say: its words may repeat what was sent.
_REFUSALS = {
    "Invalid type": "it names a type that JSON does not have",
    "Unknown format": "it names a format that cannot be enforced; strict: false leaves it out",
    "Unimplemented keys": "it uses a keyword that cannot be enforced; strict: false leaves it out",
    "Pointer": "it refers to something that is not in it",
    "nothing can be written": "no value satisfies it",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The grammar rules of what an answer may be, by the request's field that asks for each: JSON, or calls, or either."""

    answer: dict[str, str]
    calls: dict[str, str]
    takes_one: bool

    @classmethod
    def of(cls, use: ToolUse, response_format: str) -> "Shape":
        """Without a format (OpenAI's, as JSON) and without a call that must be made, the answer is free and the shape empty."""
        answer, calls = {}, {}
        if response_format and not use.is_forced:
            asked = json.loads(response_format).get("json_schema")
            field = "response_format.json_schema.schema" if asked else "response_format"
            answer[field] = _json(asked["schema"], asked) if asked else _json({"type": "object"}, {})
        for index, tool in enumerate(use.tools):
            if tool in use.callable and (answer or use.is_forced):
                function = tool.function
                arguments = _json(_bounded(function.get("parameters")), function)
                calls[f"tools[{index}].function.parameters"] = f"{_text(f'{json.dumps(tool.name)}, {_ARGUMENTS}')} {arguments}"
        return cls(answer, calls, use.takes_one)

    @property
    def parts(self) -> dict[str, str]:
        """A grammar of each field's rule alone."""
        return {field: f"start: {rule}" for field, rule in (self.answer | self.calls).items()}

    def grammar(self, is_special: Callable[[str], bool]) -> str:
        """One grammar of all; empty for a free answer. `is_special` tells which tags are single tokens."""
        if not self.answer and not self.calls:
            return ""
        answers = [f"({rule})" for rule in self.answer.values()]
        # A thought is followed by blank lines.
        lines = [r"LEAD: /\n{1,2}/"]
        if self.calls:
            opened, closed = (tag if is_special(tag) else _text(tag) for tag in (CALL_OPEN, CALL_CLOSE))
            answers.append("call" if self.takes_one else f"call ({_text(_NEWLINE)} call){{0,{_MAX_CALLS - 1}}}")
            lines.append(f"call: {opened} {_text(_BEFORE_NAME)} called {_text(_AFTER_ARGUMENTS)} {closed}")
            lines.append("called: " + " | ".join(f"({rule})" for rule in self.calls.values()))
        return "\n".join([f"start: LEAD? ({' | '.join(answers)})", *lines, ""])


def refusal(reason: str) -> str:
    """Why a schema cannot be used, in words that repeat nothing of it."""
    known = next((words for marker, words in _REFUSALS.items() if marker in reason), "")
    return f"this schema cannot be enforced: {known or 'it is too large, too deep, or not JSON Schema'}"


def _text(text: str) -> str:
    return json.dumps(text)


def _json(schema: dict[str, object], asked: dict[str, object]) -> str:
    """JSON by this schema. What cannot be enforced of it is left out, unless `strict` is asked for."""
    return "%json " + json.dumps(schema | {"x-guidance": _SPELLING | {"lenient": not asked.get("strict")}})


def _bounded(parameters: object) -> dict[str, object]:
    """Arguments are an object, and have no names but the schema's unless it says so."""
    schema = parameters if isinstance(parameters, dict) else {}
    return schema if _COMBINED & schema.keys() else {"type": "object", "additionalProperties": False} | schema
