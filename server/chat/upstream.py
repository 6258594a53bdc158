"""Chat whose answers another server gives: it has the template and the tokens, here is only text."""

import hashlib
import json
from collections.abc import Callable, Sequence

from backends.protocol import ModelSpec
from backends.upstream import UpstreamClient
from server.chat.reasoning import TextSplitter, ThoughtState
from server.chat.service import DEFAULT_SAMPLING, ChatJob, ChatService, CompletionJob, new_completion_id
from server.chat.stream import ChatResult, ChatStream, TextAssembler
from server.chat.template import ChatMessage, visible
from server.chat.tools import CallReader, Tool, ToolUse
from server.effort import Effort
from server.errors import Unsupported

# Text is counted in bytes: about four to an English token, three to a Chinese one, and a few tokens around each turn.
BYTES_PER_TOKEN, TOKENS_PER_TURN = 3, 8
# The levels that every server knows.
LEVEL = {"minimal": "low", "xhigh": "high"}
ALWAYS = ("temperature", "top_p", "top_k", "min_p", "seed")
WHEN_SET = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "max_tokens": 0, "logit_bias": {}}


class UpstreamChat(ChatService):
    """The same streams over a server that has the tokenizer.

    `opens_thought`: the model begins inside a thought that the upstream does not tell from the answer.
    """

    def __init__(self, client: UpstreamClient, observe: Callable[[ChatResult], None], *, opens_thought: bool = False) -> None:
        self._client, self._observe, self._streams, self._sampling = client, observe, [], DEFAULT_SAMPLING
        self._opened = ThoughtState.THINKING if opens_thought else ThoughtState.UNDECIDED

    @property
    def spec(self) -> ModelSpec:
        return self._client.spec

    @property
    def knows_tools(self) -> bool:
        return True  # it says so itself when it does not

    def count_tokens(self, messages: Sequence[ChatMessage], effort: Effort | None, tools: tuple[Tool, ...] = ()) -> int:
        texts = (*(each.content for each in messages), *(tool.definition for tool in tools))
        return sum(len(text.encode()) // BYTES_PER_TOKEN + TOKENS_PER_TURN for text in texts)

    async def _prepare(self, job: ChatJob) -> ChatJob:
        return job  # the upstream forces what is asked for

    def warm(
        self, messages: Sequence[ChatMessage], scope_public: str, scope_private: str, adapter: str = "", tools: tuple[Tool, ...] = ()
    ) -> None:
        return None  # what to keep is the upstream's business

    def _open(self, job: ChatJob | CompletionJob) -> ChatStream:
        if not isinstance(job, ChatJob) or job.logprobs:
            raise Unsupported("text completions and logprobs need a model on this machine")
        splitter = TextSplitter(None, ThoughtState.ANSWERING if job.is_silent else self._opened)
        tokens = self._client.submit(self._body(job), session_of(job), splitter.split)
        text = TextAssembler(None, splitter, job.stop, reader=CallReader(job.tool_use) if job.tool_use.callable else None)
        result = ChatResult(None, job.sampling, None, completion_token_ids=None, logprobs=None, num_cached=None, num_reasoning_tokens=None)
        return ChatStream(tokens, result, text, job.completion_id or new_completion_id("chatcmpl"), job.scope_public)

    def _body(self, job: ChatJob) -> dict[str, object]:
        turns = [_turn(each) for each in job.messages]
        body = {"model": self.spec.name, "messages": turns, "stream": True, "stream_options": {"include_usage": True}}
        body |= _tools(job.tool_use) | ({"response_format": json.loads(job.response_format)} if job.response_format else {})
        sampling = {name: getattr(job.sampling, name) for name in (*ALWAYS, *WHEN_SET)}
        body |= {name: value for name, value in sampling.items() if name in ALWAYS or value != WHEN_SET[name]}
        body["prompt_cache_key"] = session_of(job)
        if job.is_silent:
            return body | {"thinking_budget": 0, "chat_template_kwargs": {"enable_thinking": False}}
        if job.thinking_budget is not None:
            return body | {"thinking_budget": job.thinking_budget}
        return body | ({"reasoning_effort": LEVEL.get(job.effort, job.effort)} if job.effort else {})


def _turn(message: ChatMessage) -> dict[str, object]:
    turn: dict[str, object] = {"role": message.role.replace("developer", "system"), "content": visible(message)}
    if message.tool_calls:
        turn |= {"tool_calls": [call.spelled for call in message.tool_calls], "content": turn["content"] or None}
    return turn | ({"tool_call_id": message.tool_call_id} if message.tool_call_id else {})


def _tools(use: ToolUse) -> dict[str, object]:
    choice = {"type": "function", "function": {"name": use.named}} if use.named else use.choice
    body: dict[str, object] = {"tools": [json.loads(tool.definition) for tool in use.tools], "tool_choice": choice}
    return (body | ({} if use.is_parallel else {"parallel_tool_calls": False})) if use.tools else {}


def session_of(job: ChatJob) -> str:
    """The same for every turn of a conversation, and for no other."""
    return hashlib.sha256("\0".join((job.scope_public, job.scope_private, job.session)).encode()).hexdigest()[:32]
