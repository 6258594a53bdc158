"""The OpenAI wire: messages. Types are strict; nothing that was sent is repeated in an error."""

import json
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

MAX_CALLS = 128
FUNCTION_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


def unsupported(param: str, what: str) -> PydanticCustomError:
    """The refusal of something well-formed that is not built."""
    return PydanticCustomError("unsupported", "{what} is not supported", {"param": param, "what": what})


def refuses(what: str, *harmless: object) -> BeforeValidator:
    """A field that may only be absent, null or one of the `harmless` values, which all mean the same."""

    def check(value: object) -> None:
        if value is None or any(type(value) is type(each) and value == each for each in harmless):
            return
        raise PydanticCustomError("unsupported", "{what} is not supported", {"what": what})

    return BeforeValidator(check)


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)


class _Text(Strict):
    type: Literal["text"]
    text: str


def _part(value: object) -> object:
    if isinstance(value, dict) and value.get("type") in ("image_url", "input_audio", "file", "refusal"):
        raise PydanticCustomError("unsupported", "this model reads text only: content parts of another type are not supported")
    return value


def string_or_array(value: object) -> str | None:
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else None


Part = Annotated[_Text, BeforeValidator(_part)]
Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[Annotated[list[Part], Field(min_length=1)], Tag("array")],
    Discriminator(
        string_or_array,
        custom_error_type="content_type",
        custom_error_message="content must be a string or an array of text parts",
    ),
]


class _Message(Strict):
    content: Content | None

    @property
    def text(self) -> str:
        """The content as one string; text parts are joined as they stand."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())


class TextMessage(_Message):
    role: Literal["system", "developer", "user"]
    content: Content


def _object(text: str) -> str:
    """The arguments of a call, written anew. An empty text is a call without any."""
    try:
        written = json.dumps(json.loads(text) if text.strip() else {}, ensure_ascii=False, allow_nan=False)
        written.encode()  # an escape may have made half a character
    except (ValueError, RecursionError):
        written = ""
    if not written.startswith("{"):
        raise ValueError("arguments must be the text of a JSON object")
    return written


class FunctionCall(Strict):
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    arguments: Annotated[str, AfterValidator(_object)]


class MessageCall(Strict):
    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(_Message):
    """What the assistant thought (`reasoning_content`, `reasoning`) may come back with it and is not read."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[MessageCall], Field(max_length=MAX_CALLS)] | None = None
    function_call: Annotated[None, refuses("calling functions")] = None
    audio: Annotated[None, refuses("audio")] = None

    @property
    def calls(self) -> list[MessageCall]:
        return self.tool_calls or []

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("content_type", "content must be a string or an array of text parts", {"below": "content"})
        return self


class ToolMessage(_Message):
    """What a call gave."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)]


_ROLES = {"system", "developer", "user", "assistant", "tool"}


def _known_role(value: object) -> object:
    role = value.get("role") if isinstance(value, dict) else "user"
    if role == "function":
        raise PydanticCustomError("unsupported", "function messages are not supported", {"below": "role"})
    if not isinstance(role, str) or role not in _ROLES:
        raise PydanticCustomError("role", "role must be system, developer, user, assistant or tool", {"below": "role"})
    return value


Message = Annotated[
    Annotated[TextMessage | AssistantMessage | ToolMessage, Field(discriminator="role")],
    BeforeValidator(_known_role),
]


def check_calls(messages: Sequence[Message]) -> None:
    """Every call is answered right after it, once, and nothing else is. Raises PydanticCustomError."""
    unanswered: set[str] = set()
    for index, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in unanswered:
                raise _misplaced(f"messages[{index}].tool_call_id", "no call before this message has that id and waits for an answer")
            unanswered.remove(message.tool_call_id)
            continue
        if unanswered:
            raise _misplaced(f"messages[{index}].role", "a tool message must answer every call before anything else is said")
        calls = message.calls if isinstance(message, AssistantMessage) else []
        unanswered = {call.id for call in calls}
        if len(unanswered) < len(calls):
            raise _misplaced(f"messages[{index}].tool_calls", "every call needs an id of its own")
    if unanswered:
        raise _misplaced("messages", "a tool message must answer every call")


def _misplaced(param: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("value", "{message}", {"param": param, "message": message})
