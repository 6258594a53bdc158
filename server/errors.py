"""Errors: the server's own classes, the one table from exception class to status, type and code, and the one shape they leave in."""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import feedback.record
from backends.protocol import AdapterRefused, ContextTooLong, EmptyAnswer, EngineBusy, EngineDied, EngineDown, EngineError, NoMemory
from backends.upstream import UpstreamBusy, UpstreamError, UpstreamRefused, UpstreamTimeout
from feedback.credentials import AccountError, BadPassword, WrongPassword
from feedback.database import RecordUnavailable
from feedback.importers import ImportRefused
from feedback.inbox import StateChanged
from feedback.knowledge import Outdated
from feedback.review import AlreadyRated
from feedback.signals import KeyReused


class RequestError(Exception):
    """Base of everything the server refuses. Messages describe what is wanted and never repeat what was sent.

    RequestError
    ├── InvalidRequest      a value that cannot be used; `param` names it
    │   └── Unsupported     well-formed, but not built
    ├── Unauthorized        no key, or a wrong one
    ├── Forbidden           known, but not allowed to
    ├── NotFound            no such thing, or somebody else's
    │   └── ModelNotFound
    ├── ConversationClosed  resolved long ago; a new one is needed
    ├── TooManyRequests     over this caller's limit; try again after `retry_after_s`
    ├── BodyTooLarge, BodyStalled, HeadersTooLarge, NotJson
    └── ShuttingDown        the server is draining
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


class InvalidRequest(RequestError): ...


class Unsupported(InvalidRequest): ...


class Unauthorized(RequestError): ...


class Forbidden(RequestError): ...


class NotFound(RequestError): ...


class ModelNotFound(NotFound): ...


class TooManyRequests(RequestError): ...


class ConversationClosed(RequestError): ...


class BodyTooLarge(RequestError): ...


class BodyStalled(RequestError): ...


class HeadersTooLarge(RequestError): ...


class NotJson(RequestError): ...


class ShuttingDown(RequestError): ...


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. A `message` here hides the exception's own."""

    status: int
    type: str
    code: str | None = None
    message: str | None = None


_REQUEST, _SERVER = "invalid_request_error", "server_error"
STATUS: dict[type[Exception], Row] = {
    InvalidRequest: Row(400, _REQUEST),
    Unsupported: Row(400, _REQUEST, "unsupported"),
    ContextTooLong: Row(400, _REQUEST, "context_length_exceeded"),
    Unauthorized: Row(401, _REQUEST, "invalid_api_key"),
    WrongPassword: Row(401, _REQUEST, "wrong_password"),
    BadPassword: Row(400, _REQUEST, "bad_password"),
    AccountError: Row(400, _REQUEST, "bad_account", "there is no such agent, or the name is taken or cannot be one"),
    ImportRefused: Row(400, _REQUEST, "import_refused"),
    Forbidden: Row(403, _REQUEST, "forbidden"),
    NotFound: Row(404, _REQUEST, "not_found"),
    ModelNotFound: Row(404, _REQUEST, "model_not_found"),
    BodyStalled: Row(408, _REQUEST, "body_timeout"),
    BodyTooLarge: Row(413, _REQUEST, "body_too_large"),
    NotJson: Row(415, _REQUEST, "not_json"),
    TooManyRequests: Row(429, "rate_limit_error", "rate_limit_exceeded"),
    feedback.record.NotFound: Row(404, _REQUEST, "not_found"),
    KeyReused: Row(409, _REQUEST, "idempotency_key_reused"),
    StateChanged: Row(409, _REQUEST, "state_changed"),
    AlreadyRated: Row(409, _REQUEST, "already_rated"),
    Outdated: Row(409, _REQUEST, "outdated"),
    ConversationClosed: Row(409, _REQUEST, "conversation_closed"),
    HeadersTooLarge: Row(431, _REQUEST, "headers_too_large"),
    EngineBusy: Row(503, _SERVER, "queue_full"),
    NoMemory: Row(503, _SERVER, "out_of_memory"),
    EngineDown: Row(503, _SERVER, "engine_down"),
    EngineDied: Row(503, _SERVER, "engine_died", "the engine stopped while it worked on this request; please try again"),
    UpstreamRefused: Row(400, _REQUEST, "upstream_refused"),
    UpstreamBusy: Row(429, "rate_limit_error", "queue_full"),
    UpstreamError: Row(502, _SERVER, "upstream_failed"),
    UpstreamTimeout: Row(504, _SERVER, "upstream_timeout"),
    EmptyAnswer: Row(502, _SERVER, "empty_answer"),
    AdapterRefused: Row(503, _SERVER, "adapter_refused"),
    ShuttingDown: Row(503, _SERVER, "shutting_down"),
    RecordUnavailable: Row(507, _SERVER, "record_unavailable", "this cannot be stored at the moment; please try again later"),
    EngineError: Row(500, _SERVER, "engine_error", "the engine could not work on this request"),
    Exception: Row(500, _SERVER, "internal_error", "something went wrong on our side"),
}
_CLOSES_CONNECTION = (BodyTooLarge, BodyStalled, HeadersTooLarge, ShuttingDown)
_CONTEXT_PARAM = "messages"


def row_for(error: Exception) -> Row:
    """The most specific row of the table for this exception."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def error_object(error: Exception) -> dict[str, object]:
    """The `{"error": ...}` value that every failed call and broken stream carries."""
    row = row_for(error)
    param = _CONTEXT_PARAM if isinstance(error, ContextTooLong) else getattr(error, "param", None)
    return _object(row.message or str(error), row.type, param, getattr(error, "code", None) or row.code)


def error_headers(error: Exception) -> dict[str, str]:
    """Headers that go with it: when to come back, how to authenticate, whether the connection ends."""
    headers: dict[str, str] = {}
    retry_after_s: int | None = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s)
        headers["x-ratelimit-remaining-requests"] = "0"
        headers["x-ratelimit-reset-requests"] = f"{retry_after_s}s"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, _CLOSES_CONNECTION):
        headers["connection"] = "close"
    return headers


def status_object(status: int) -> dict[str, object]:
    """The error of a status that the framework decided: 404 for an unknown path, 405 for a wrong method."""
    phrase = HTTPStatus(status).phrase
    kind = _SERVER if status >= 500 else _REQUEST
    return _object(f"{phrase.lower()}: see the documentation for paths and methods", kind, None, phrase.lower().replace(" ", "_"))


def encode_error(error_json: dict[str, object]) -> bytes:
    """The JSON text of an error."""
    return msgspec.json.encode(error_json)


def _object(message: str, kind: str, param: object, code: str | None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def respond(error: Exception) -> Response:
    """The response of a failed call."""
    return Response(encode_error(error_object(error)), row_for(error).status, error_headers(error), "application/json")


def install_handlers(app: FastAPI, page: Callable[[Request, Exception], Response | None] = lambda request, error: None) -> None:
    """Every refusal of this app, the framework's included, leaves in the one error shape, or as the `page` that a person can read."""

    async def refused(request: Request, error: Exception) -> Response:
        return page(request, error) or respond(error)

    async def framework_refused(request: Request, error: Exception) -> Response:
        status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (500, None)
        return page(request, error) or Response(encode_error(status_object(status)), status, headers, "application/json")

    async def invalid_parameter(request: Request, error: Exception) -> Response:
        location = error.errors()[0]["loc"] if isinstance(error, RequestValidationError) else ("request",)
        refusal = InvalidRequest("a parameter is missing or cannot be used", param=str(location[-1]))
        return page(request, refusal) or respond(refusal)

    for refusal in STATUS:
        if refusal is not Exception:
            app.add_exception_handler(refusal, refused)
    app.add_exception_handler(HTTPException, framework_refused)
    app.add_exception_handler(RequestValidationError, invalid_parameter)
