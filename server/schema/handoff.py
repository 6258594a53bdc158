"""People on the wire: what customers and agents send about a conversation that a person has. What they get are the nouns themselves."""

import re
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, model_validator

from server.schema.desk import MAX_COMMENT_CHARS, MAX_TEXT_CHARS, Request, not_blank

# One @, a name before it, a domain with a dot behind it. Whether the box exists only a mail can tell.
EMAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,63}")
PHONE = re.compile(r"\+?(?:[ ()./-]{0,2}[0-9]){6,20}")

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS), AfterValidator(not_blank)]


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line of text")
    return text.strip()


def _email(text: str) -> str:
    if len(text) > 254 or not EMAIL.fullmatch(text):
        raise ValueError("must be an e-mail address")
    return text


def _phone(text: str) -> str:
    if not PHONE.fullmatch(text):
        raise ValueError("must be a phone number")
    return text


class FormRequest(Request):
    """A message for when nobody is there: by e-mail or by phone the customer must be reachable."""

    name: Annotated[str, Field(max_length=100), AfterValidator(_one_line)] = ""
    email: Annotated[str, AfterValidator(_email)] | None = None
    phone: Annotated[str, AfterValidator(_phone)] | None = None
    text: Text

    @model_validator(mode="after")
    def _reachable(self) -> "FormRequest":
        if not self.email and not self.phone:
            raise ValueError("needs an email or a phone")
        return self


class CsatRequest(Request):
    value: Annotated[int, Field(ge=1, le=5)]
    comment: Annotated[str, Field(max_length=MAX_COMMENT_CHARS)] | None = None
    idempotency_key: UUID


class MoveRequest(Request):
    """`assign` gives the conversation of the agent `instead_of` to the agent `agent`."""

    action: Literal["take", "release", "return", "resolve", "assign"]
    agent: Annotated[str, Field(max_length=100)] | None = None
    instead_of: Annotated[str, Field(max_length=100)] | None = None

    @model_validator(mode="after")
    def _names_fit(self) -> "MoveRequest":
        if (self.action == "assign") != (self.agent is not None and self.instead_of is not None):
            raise ValueError("agent and instead_of belong to assign")
        return self


class AgentMessageRequest(Request):
    kind: Literal["agent", "note"]
    text: Text
    client_message_id: UUID


class CannedRequest(Request):
    title: Annotated[str, Field(max_length=80), AfterValidator(not_blank), AfterValidator(_one_line)]
    text: Text
