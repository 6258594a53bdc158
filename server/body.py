"""Request bodies at the door: strict JSON, then one pydantic model. Nothing that was sent is repeated in an error."""

import json
import math
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from server.errors import InvalidRequest, NotJson, Unsupported

MAX_DEPTH = 64
MAX_CONTAINERS = 50_000
MAX_DIGITS = 25
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|([\[{])|[\]}]', re.DOTALL)

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None
Model = TypeVar("Model", bound=BaseModel)


def body(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """The dependency that reads a JSON object from the request as this model. Raises NotJson or InvalidRequest."""

    async def parse(request: Request) -> Model:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise NotJson("the body must be sent as application/json")
        try:
            raw = await request.body()
        except ClientDisconnect:
            raise InvalidRequest("the connection closed before the body was complete") from None
        return parse_body(raw, model)

    return parse


def parse_body(raw: bytes, model: type[Model]) -> Model:
    """Raises InvalidRequest, with `param` naming the field."""
    document = parse_json(raw)
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _refusal(error, document) from None


def parse_json(raw: bytes) -> Json:
    """JSON as RFC 8259 has it and no looser: no NaN, no lone surrogates, no NUL, no key twice, no number beyond a double."""
    _check_depth(raw)
    try:
        text = raw.decode("utf-8")
        document: Json = json.loads(text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_not_a_number)
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    if "\\u" in text:
        _check_strings(document)
    return document


def _check_depth(raw: bytes) -> None:
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    depth = num_containers = 0
    for match in _STRING_OR_BRACKET.finditer(raw):
        if match.group(1):
            depth, num_containers = depth + 1, num_containers + 1
            if depth > MAX_DEPTH or num_containers > MAX_CONTAINERS:
                raise InvalidRequest(
                    f"the body nests deeper than {MAX_DEPTH} levels or holds more than {MAX_CONTAINERS} arrays and objects"
                )
        elif match.group() in (b"]", b"}"):
            depth -= 1


def _unique(pairs: list[tuple[str, Json]]) -> Json:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise InvalidRequest("an object in the body has the same key twice")
    return document


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise InvalidRequest(f"a number in the body has more than {MAX_DIGITS} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise InvalidRequest("a number in the body is too large")
    return value


def _not_a_number(name: str) -> float:
    raise InvalidRequest("NaN and Infinity are not JSON")


def _check_strings(document: Json) -> None:
    pending: list[Json] = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
                raise InvalidRequest("a string in the body holds a character that is not text")
        elif isinstance(value, dict):
            pending.extend(value)
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _refusal(error: ValidationError, document: Json) -> InvalidRequest:
    first = error.errors(include_url=False, include_input=False)[0]
    context: dict[str, object] = first.get("ctx", {})
    param = str(context.get("param") or _param([*first["loc"], *([context["below"]] if "below" in context else [])], document)) or None
    if first["type"] == "unsupported":
        return Unsupported(first["msg"], param=param)
    if first["type"] == "extra_forbidden":
        return InvalidRequest("there is no such field", param=param, code="unknown_field")
    return InvalidRequest(first["msg"].removeprefix("Value error, "), param=param)


def _param(location: list[object], document: Json) -> str:
    """`messages[2].content`: the location's steps that exist in the document; pydantic's also name union members."""
    name, here = "", document
    for index, step in enumerate(location):
        if isinstance(step, int) and isinstance(here, list) and step < len(here):
            name, here = f"{name}[{step}]", here[step]
        elif isinstance(step, str) and isinstance(here, dict) and (step in here or index == len(location) - 1):
            name, here = f"{name}.{step}" if name else step, here.get(step)
    return name
