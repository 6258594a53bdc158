"""The console on the wire: what its pages send."""

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Base64Bytes, BaseModel, BeforeValidator, ConfigDict, Field

from backends.mini.shop import Language
from feedback.accounts import MAX_NAME_CHARS
from feedback.credentials import MAX_PASSWORD_CHARS, Role
from feedback.importers import MAX_TITLE_CHARS
from feedback.review import Verdict
from server.schema.desk import Request, not_blank

Password = Annotated[str, Field(max_length=MAX_PASSWORD_CHARS)]
# A form sends its empty fields too.
Blank = BeforeValidator(lambda value: value or None)


class SignInRequest(Request):
    """`next` is the page that was asked for."""

    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)]
    password: Password
    next: Annotated[str, Field(max_length=2000)] = ""


class PasswordRequest(Request):
    """`current` is not asked of whoever was given theirs: they typed it a moment ago."""

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


class ArticleRequest(Request):
    """An article as it was typed, in place of the article `replaces` as it was in `version`; one example question a line."""

    title: Annotated[str, Field(max_length=MAX_TITLE_CHARS, pattern=r"^[^\r\n]*$"), AfterValidator(not_blank)]
    text: Annotated[str, Field(max_length=200_000), AfterValidator(not_blank)]
    questions: Annotated[str, Field(max_length=50_000)] = ""
    replaces: Annotated[str, Field(max_length=40)] = ""
    version: Annotated[str, Field(max_length=64)] = ""


class ImportRequest(Request):
    """A file, in base64."""

    name: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f/\\]{1,200}$")]
    content: Base64Bytes


class PolicyRequest(Request):
    """A policy file that comes after the version `edited`; an answer to check against it; which of the tests to put to the model."""

    content: Annotated[str, Field(max_length=300_000)]
    edited: Annotated[str, Field(max_length=64)] = ""
    language: Language = "en"
    question: Annotated[str, Field(max_length=4000)] = ""
    answer: Annotated[str, Field(max_length=20_000)] = ""
    test: Annotated[int, Field(ge=0)] = 0


class AgentRequest(Request):
    """What to do about an agent; `role` counts for `add` and `role`."""

    name: Annotated[str, Field(max_length=MAX_NAME_CHARS), AfterValidator(not_blank)]
    role: Role
    action: Literal["add", "role", "password", "disable", "enable"]


class ReviewRequest(Request):
    """A verdict on a pair as it was shown."""

    pair_id: Annotated[str, Field(max_length=40)]
    seen: Annotated[str, Field(max_length=16)]
    verdict: Verdict
    reason: Annotated[str, Field(max_length=500)] = ""
