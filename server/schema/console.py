"""The console on the wire: what its pages send."""

from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from backends.mini.shop import Language
from feedback.accounts import MAX_NAME_CHARS
from feedback.credentials import MAX_PASSWORD_CHARS

Password = Annotated[str, Field(max_length=MAX_PASSWORD_CHARS)]
# A form sends its empty fields too.
Blank = BeforeValidator(lambda value: value or None)


class SignInRequest(BaseModel):
    """`next` is the page that was asked for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)]
    password: Password
    next: Annotated[str, Field(max_length=2000)] = ""


class PasswordRequest(BaseModel):
    """`current` is not asked of whoever was given theirs: they typed it a moment ago."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    current: Password = ""
    password: Password


class Filters(BaseModel):
    """The list of conversations in its URL; dates are days of this machine's calendar, both included."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    q: Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")] = ""
    language: Annotated[Language | None, Blank] = None
    thumb: Annotated[Literal["up", "down"] | None, Blank] = None
    cited: Annotated[Literal["yes", "no"] | None, Blank] = None
    since: Annotated[date | None, Blank] = None
    until: Annotated[date | None, Blank] = None
    before: Annotated[str | None, Blank, Field(pattern=r"^\d{1,15}\.\w{1,40}$")] = None
