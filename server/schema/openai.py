"""The OpenAI wire: what `/v1` takes. Types are strict, ranges are refused and never clamped."""

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from backends.sequence import SamplingParams
from server.effort import Effort
from server.schema.messages import Message, Strict, check_calls, refuses, string_or_array, unsupported
from server.schema.tools import ResponseFormat, ToolChoice, Tools, check_tools

MAX_MESSAGES = 1000
MAX_STOP_CHARS = 256
MAX_LOGIT_BIAS = 300
MAX_CHOICES = 8
MAX_TEXTS = 2048
# llama.cpp reads this seed as "pick one for me".
_RESERVED_SEED = 2**32 - 1

# Fields of the OpenAI schema that mean nothing here.
MEANINGLESS = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_options",
        "prompt_cache_retention",
        "service_tier",
        "store",
        "verbosity",
        "web_search_options",
    }
)


_MESSAGE_MEANINGLESS = frozenset({"name", "reasoning", "reasoning_content", "refusal", "annotations"})


def _one_choice(value: object) -> object:
    if type(value) is int and 2 <= value <= 128:
        raise PydanticCustomError("unsupported", "more than one choice is not supported")
    if isinstance(value, bool):
        raise ValueError("Input should be a valid integer")
    return value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _stops(value: list[str] | None) -> list[str]:
    stops = value or []
    if not all(stops) or any(len(stop) > MAX_STOP_CHARS for stop in stops):
        raise ValueError(f"a stop string has 1 to {MAX_STOP_CHARS} characters")
    return stops


def _biases(value: dict[str, float] | None) -> dict[int, float]:
    biases = value or {}
    if len(biases) > MAX_LOGIT_BIAS:
        raise ValueError(f"at most {MAX_LOGIT_BIAS} biases")
    if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in biases) or any(abs(bias) > 100 for bias in biases.values()):
        raise ValueError("keys are token ids, values are between -100 and 100")
    return {int(key): bias for key, bias in biases.items()}


def _single(value: object) -> object:
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        raise PydanticCustomError("unsupported", "more than one prompt is not supported")
    return value


def _texts(value: object) -> object:
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise PydanticCustomError("unsupported", "token ids are not supported here: send strings")
    return _as_list(value)


Prompt = Annotated[
    Annotated[str, Tag("string")] | Annotated[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)], Tag("array")],
    Discriminator(
        string_or_array, custom_error_type="prompt_type", custom_error_message="prompt must be a string or an array of token ids"
    ),
    BeforeValidator(_single),
]


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Generation(Strict):
    """What chat and text completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    logit_bias: Annotated[dict[str, float] | None, AfterValidator(_biases)] = None
    stop: Annotated[list[str] | None, Field(max_length=4), BeforeValidator(_as_list), AfterValidator(_stops)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("value", "stream_options needs stream", {"param": "stream_options"})
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def conversation(self) -> str:
        """Whose cache this request may reuse beyond the system messages."""
        return "\x00".join(part or "" for part in (self.prompt_cache_key, self.user, self.safety_identifier))

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop or ())

    @property
    def ignored_fields(self) -> set[str]:
        """Fields that came and are not read."""
        return set(self.model_extra or {})

    @property
    def unknown_fields(self) -> set[str]:
        """Those of them that are in nobody's schema."""
        return self.ignored_fields - MEANINGLESS

    def sampling(self, defaults: SamplingParams, *, random_seed: Callable[[], int]) -> SamplingParams:
        """How to draw: what the request says, then the model's own defaults."""
        given = {name: getattr(self, name) for name in _SAMPLING_FIELDS if getattr(self, name) is not None}
        base = {name: getattr(defaults, name) for name in _SAMPLING_FIELDS}
        seed = random_seed() if self.seed is None else self.seed
        max_tokens = self.max_output_tokens or defaults.max_tokens
        return SamplingParams(**base | given, seed=seed % _RESERVED_SEED, max_tokens=max_tokens, num_top_logprobs=self.num_top_logprobs)

    @property
    def max_output_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def num_top_logprobs(self) -> int:
        return 0


_SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")


class ChatCompletionRequest(_Generation):
    """`POST /v1/chat/completions`. Ours are `thinking_budget`, `top_k`, `min_p` and `repetition_penalty`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    reasoning_effort: Effort | None = None
    thinking_budget: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[None, refuses("calling functions", [])] = None
    function_call: Annotated[None, refuses("calling functions", "none")] = None
    modalities: Annotated[None, refuses("output other than text", ["text"])] = None
    audio: Annotated[None, refuses("audio")] = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("value", "top_logprobs needs logprobs", {"param": "top_logprobs"})
        if self.messages[-1].role == "assistant":
            raise unsupported(f"messages[{len(self.messages) - 1}].role", "continuing an assistant message")
        check_calls(self.messages)
        check_tools(self.tools, self.tool_choice)
        return self

    @property
    def max_output_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_top_logprobs(self) -> int:
        return self.top_logprobs or 0

    @property
    def ignored_fields(self) -> set[str]:
        in_messages = {f"messages[].{name}" for message in self.messages for name in message.model_extra or {}}
        return super().ignored_fields | in_messages

    @property
    def unknown_fields(self) -> set[str]:
        return super().unknown_fields - {f"messages[].{name}" for name in _MESSAGE_MEANINGLESS}


class ControlRequest(Strict):
    """`POST /v1/chat/completions/{id}/control`"""

    model_config = ConfigDict(extra="forbid")

    action: Literal["answer_now"]


class EmbeddingRequest(Strict):
    """`POST /v1/embeddings`"""

    input: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_TEXTS), BeforeValidator(_texts)]
    model: Annotated[str, Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[None, refuses("choosing the dimensions of a vector")] = None
    user: str | None = None


class CompletionRequest(_Generation):
    """`POST /v1/completions`: text or token ids to continue as they stand."""

    prompt: Prompt
    best_of: Annotated[Literal[1] | None, BeforeValidator(_one_choice)] = None
    echo: Annotated[None, refuses("echoing the prompt", False)] = None
    suffix: Annotated[None, refuses("a suffix", "")] = None
    logprobs: Annotated[None, refuses("logprobs for text completions")] = None
