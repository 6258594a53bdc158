"""Tools: what the model may call, and the calls in what it says, written as Hermes models write them."""

import json
import re
import secrets
from dataclasses import dataclass
from typing import Literal, NoReturn

from server.chat.stops import StopFinder

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Tool:
    """One function. `definition` is the JSON of the whole tool, as the OpenAI API spells it."""

    name: str
    definition: str

    @property
    def function(self) -> dict[str, object]:
        """What there is to know of it: name, description, parameters, strict."""
        function: dict[str, object] = json.loads(self.definition)["function"]
        return function


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is the JSON of an object."""

    id: str
    name: str
    arguments: str

    @property
    def spelled(self) -> dict[str, object]:
        """As the OpenAI API spells it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request and what may be done with them; a `named` one is the only one that may be called, and must be."""

    tools: tuple[Tool, ...] = ()
    choice: Literal["none", "auto", "required"] = "auto"
    named: str = ""
    is_parallel: bool = True

    @property
    def callable(self) -> tuple[Tool, ...]:
        if self.choice == "none":
            return ()
        return tuple(tool for tool in self.tools if self.named in ("", tool.name))

    @property
    def is_forced(self) -> bool:
        return self.choice == "required" and bool(self.tools)

    @property
    def takes_one(self) -> bool:
        """At most one call."""
        return bool(self.named) or not self.is_parallel


class CallReader:
    """Takes the calls out of an answer's text; what comes out does not depend on how the text was cut.

    What does not name a tool, or is no JSON and cannot be repaired in one way only, stays text. White space around calls is nobody's.
    """

    def __init__(self, use: ToolUse) -> None:
        self.calls: list[ToolCall] = []
        self._names = {tool.name for tool in use.callable}
        self._takes_one = use.takes_one
        self._finder = StopFinder((CALL_OPEN,))
        self._body: list[str] | None = None
        self._blank = ""
        self._follows_call = False

    @property
    def is_full(self) -> bool:
        """No more calls are wanted, nor text after them."""
        return self._takes_one and bool(self.calls)

    def push(self, text: str) -> str:
        """The text that is certain to be no call. Calls that are complete are in `calls`."""
        said = ""
        while not self.is_full:
            certain = self._finder.push(text)
            if self._body is None:
                said += self._say(certain)
            else:
                self._body.append(certain)
            if not self._finder.found:
                break
            given_back, text = self._turn(self._finder.rest)
            said += self._say(given_back)
        return said

    def flush(self) -> str:
        """What was held back, when nothing more will come."""
        said = ""
        while not self.is_full:
            held = self._finder.flush()
            if self._body is None:
                return said + self._say(held) + self._blank
            body = "".join(self._body) + held
            self._await(None)
            if self._add(_read(body, self._names, is_closed=False)):
                break
            given_back, rest = _given_back(body)
            said += self._say(given_back) + self.push(rest)
        return said

    def _turn(self, rest: str) -> tuple[str, str]:
        """Follow a tag that has been found. A call that is none is given back as text, and what came after it is read anew."""
        if self._body is None:
            self._await([])
            return "", rest
        body = "".join(self._body)
        if self._add(_read(body, self._names, is_closed=True)):
            self._await(None)
            return "", rest
        if _ends_in_string(body):
            self._await([body, CALL_CLOSE])
            return "", rest
        self._await(None)
        given_back, unread = _given_back(body + CALL_CLOSE)
        return given_back, unread + rest

    def _await(self, body: list[str] | None) -> None:
        self._body = body
        self._finder = StopFinder((CALL_OPEN,) if body is None else (CALL_CLOSE,))

    def take(self, name: str, arguments: str) -> bool:
        """Take a call that somebody else has read. False when it cannot be one."""
        return self._add(_call(name, arguments) if name in self._names else None)

    def _add(self, call: ToolCall | None) -> bool:
        if call is not None:
            self.calls.append(call)
            self._blank, self._follows_call = "", True
        return call is not None

    def _say(self, text: str) -> str:
        text = self._blank + text
        if self._follows_call:
            text = text.lstrip()
            self._follows_call = not text
        certain = text.rstrip()
        self._blank = text[len(certain) :]
        return certain


def _given_back(body: str) -> tuple[str, str]:
    """A call that is none, as text up to its first closing tag; and what is to be read anew."""
    head, tag, rest = body.partition(CALL_CLOSE)
    return CALL_OPEN + head + tag, rest


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_no_number)
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', re.DOTALL)


def _read(body: str, names: set[str], *, is_closed: bool) -> ToolCall | None:
    """The call that this JSON is. Repaired are arguments in a string or under "parameters", and closing brackets, missing or too many."""
    try:
        value = _value(body.strip(), is_closed=is_closed)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value["name"] not in names:
        return None
    return _call(value["name"], value.get("arguments", value.get("parameters")))


def _call(name: str, arguments: object) -> ToolCall | None:
    try:
        if isinstance(arguments, str):
            arguments = _DECODER.decode(arguments) if arguments.strip() else None
        text = json.dumps({} if arguments is None else arguments, ensure_ascii=False, allow_nan=False)
        text.encode()  # an escape may have made half a character
    except (ValueError, RecursionError):
        return None
    return ToolCall(new_call_id(), name, text) if text.startswith("{") else None


def _value(text: str, *, is_closed: bool) -> object:
    """Raises ValueError."""
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        is_short = error.pos == len(text) and error.msg.startswith("Expecting ',' delimiter")
        if not (is_closed and is_short):
            raise
        return _DECODER.decode(text + _missing_brackets(text))
    if text[end:].strip(" \t\r\n}]"):
        raise ValueError("more than a call")
    return value


def _missing_brackets(text: str) -> str:
    missing: list[str] = []
    for match in _STRING_OR_BRACKET.finditer(text):
        if match[1]:
            missing.append("}" if match[1] == "{" else "]")
        elif match[2] and missing:
            missing.pop()
    return "".join(reversed(missing))


def _ends_in_string(text: str) -> bool:
    try:
        _DECODER.raw_decode(text.strip())
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        pass
    return False
