"""What a request on `/v1` asks of the chat."""

import json
import secrets
from collections.abc import Collection
from urllib.parse import quote

from server.chat.service import ChatJob, ChatMessage, ChatService, CompletionJob
from server.chat.tools import Tool, ToolCall, ToolUse
from server.errors import InvalidRequest, ModelNotFound
from server.schema.messages import AssistantMessage, Message, ToolMessage
from server.schema.openai import ChatCompletionRequest, CompletionRequest
from server.schema.tools import FunctionTool, ResponseFormat

MAX_NAMED_PARAMS = 32


def chat_job(asked: ChatCompletionRequest, key_id: str, chat: ChatService, adapter: str) -> ChatJob:
    """The answer that this request asks for."""
    return ChatJob(
        messages=tuple(_message(message) for message in asked.messages),
        sampling=asked.sampling(chat.default_sampling(), random_seed=_random_seed),
        stop=asked.stops,
        effort=asked.reasoning_effort,
        thinking_budget=asked.thinking_budget,
        scope_public=key_id,
        scope_private=f"{key_id}\x00{asked.conversation}",
        session=next((message.text for message in asked.messages if message.role == "user"), ""),
        adapter=adapter,
        logprobs=bool(asked.logprobs),
        tool_use=_tool_use(asked),
        response_format=_response_format(asked.response_format),
    )


def completion_job(asked: CompletionRequest, key_id: str, chat: ChatService, adapter: str) -> CompletionJob:
    """The text that this request asks for."""
    return CompletionJob(
        prompt=asked.prompt if isinstance(asked.prompt, str) else tuple(asked.prompt),
        sampling=asked.sampling(chat.default_sampling(), random_seed=_random_seed),
        stop=asked.stops,
        scope_public=key_id,
        scope_private=f"{key_id}\x00{asked.conversation}",
        adapter=adapter,
    )


def adapter_named(name: str, chat: ChatService) -> str:
    """The adapter that a model's name asks for: its registry key, empty for the model itself. Raises ModelNotFound."""
    if name == chat.spec.name:
        return ""
    key = chat.adapters.all().get(name.removeprefix(f"{chat.spec.name}:"), "")
    if not key or not name.startswith(f"{chat.spec.name}:"):
        raise ModelNotFound("there is no such model to chat with here; GET /v1/models names those there are", param="model")
    return key


def name_ignored(ignored: Collection[str], refused: Collection[str]) -> dict[str, str]:
    """The header that names what is not read. Raises InvalidRequest for a field that is refused."""
    if refused:
        raise InvalidRequest("there is no such field", param=min(refused), code="unknown_field")
    named = sorted(quote(name[:64], safe="[]") for name in ignored)[:MAX_NAMED_PARAMS]
    return {"x-ignored-params": ", ".join(named)} if named else {}


def _message(message: Message) -> ChatMessage:
    calls = message.calls if isinstance(message, AssistantMessage) else []
    return ChatMessage(
        message.role,
        message.text,
        tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in calls),
        message.tool_call_id if isinstance(message, ToolMessage) else "",
    )


def _tool_use(asked: ChatCompletionRequest) -> ToolUse:
    tools = tuple(_tool(tool) for tool in asked.tools or ())
    is_parallel = asked.parallel_tool_calls is not False
    if isinstance(asked.tool_choice, FunctionTool):
        return ToolUse(tools, "required", asked.tool_choice.function.name, is_parallel)
    return ToolUse(tools, asked.tool_choice or "auto", "", is_parallel)


def _tool(tool: FunctionTool) -> Tool:
    return Tool(tool.function.name, json.dumps(tool.model_dump(exclude_unset=True), ensure_ascii=False))


def _response_format(asked: ResponseFormat | None) -> str:
    if asked is None or asked.type == "text":
        return ""
    return json.dumps(asked.model_dump(by_alias=True, exclude_unset=True))


def _random_seed() -> int:
    return secrets.randbits(31)
