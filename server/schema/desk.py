"""The desk on the wire: what the chat page sends and gets."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, computed_field, model_validator

from backends.mini.shop import Language
from feedback.record import State
from server.quick_replies import quick_replies

MAX_TEXT_CHARS = 4000
MAX_COMMENT_CHARS = 1000
MAX_TAGS = 5
MAX_DWELL_MS = 24 * 3_600_000
GOOD_TAGS = frozenset({"helpful", "clear", "quick"})
BAD_TAGS = frozenset({"wrong", "outdated", "unclear", "not_my_question", "too_long", "impolite"})


def not_blank(text: str) -> str:
    """Raises ValueError."""
    if not text.strip():
        raise ValueError("must say something")
    return text


def _not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be 1 or -1")
    return value


class Request(BaseModel):
    """What is sent: no field but these, of no type but these."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EmptyRequest(Request):
    """`{}`"""


class VisitorRequest(Request):
    """`customer` is the JWT of a known customer."""

    customer: Annotated[str, Field(min_length=1, max_length=4096)] | None = None


class ConversationRequest(Request):
    language: Language


class ConsentRequest(Request):
    train: bool


class MessageRequest(Request):
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARS), AfterValidator(not_blank)]
    client_message_id: UUID
    replaces: Annotated[str, Field(min_length=1, max_length=40)] | None = None


class SignalRequest(Request):
    """A thumb, whose tags say why and fit its direction; or that the answer was copied, which is 1 and says no more."""

    completion_id: Annotated[str, Field(max_length=64)]
    kind: Literal["thumb", "copy"]
    value: Annotated[Literal[1, -1], BeforeValidator(_not_bool)]
    tags: Annotated[list[str], Field(max_length=MAX_TAGS)] = Field(default_factory=list)
    comment: Annotated[str, Field(max_length=MAX_COMMENT_CHARS)] | None = None
    idempotency_key: UUID

    @model_validator(mode="after")
    def _tags_fit(self) -> "SignalRequest":
        if self.kind == "copy" and (self.value != 1 or self.tags or self.comment):
            raise ValueError("a copy is 1 and has no tags and no comment")
        if not set(self.tags) <= (GOOD_TAGS if self.value > 0 else BAD_TAGS):
            raise ValueError("tags must be among those of this thumb's direction")
        return self


class ChoiceRequest(Request):
    """Which of two answers is better, and how long both were in sight."""

    better: Literal["first", "second", "neither"]
    dwell_ms: Annotated[int, Field(ge=0, le=MAX_DWELL_MS)]
    idempotency_key: UUID


class _Reply(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class VisitorReply(_Reply):
    visitor_id: str
    token: str
    expires_in_s: int


class PassageReply(_Reply):
    id: str
    title: str
    text: str


class ShopReply(_Reply):
    name: str
    greeting: str
    suggestions: list[str]
    passages: list[PassageReply]


class CitationReply(_Reply):
    number: int
    passage_id: str
    title: str
    text: str


class MessageReply(_Reply):
    """A message of a customer or an agent has no completion_id, finish_reason or thumb; neither has an answer that cannot be voted on."""

    message_id: str = Field(validation_alias="id")
    role: Literal["user", "assistant", "agent"]
    author: str | None
    text: str
    status: Literal["complete", "stopped", "interrupted"]
    citations: list[CitationReply]
    completion_id: str | None
    finish_reason: str | None
    thumb: int | None
    asks_thumb: bool
    has_second: bool

    @computed_field  # type: ignore[prop-decorator]
    @property
    def quick_replies(self) -> list[str]:
        """What an answer lets the customer choose from."""
        return quick_replies(self.text) if self.role == "assistant" and self.status == "complete" else []


class DecisionRequest(Request):
    """The customer's button under what the bot wants to do."""

    decision: Literal["yes", "no"]


class ConfirmReply(_Reply):
    """What waits for the customer's yes; `arguments` are pairs of a name and a value, as text."""

    call_id: str
    tool: str
    arguments: list[tuple[str, str]]


class ConversationReply(_Reply):
    conversation_id: str
    language: str
    messages: list[MessageReply]
    answering: bool = False
    state: State = "bot"
    consent_train: bool = False
    confirm: ConfirmReply | None = None
    seq: int = 0  # of the last message: where to follow from


class SignalReply(_Reply):
    signal_id: str
