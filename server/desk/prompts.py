"""What the model reads of a conversation: the turns that fit, and what tools told."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from feedback.calls import Call
from feedback.record import new_id
from server.chat.service import ChatJob, ChatMessage, ChatService
from server.desk.policy import Policy
from server.desk.tool import TOO_LONG
from server.desk.tools import Toolbox, steps
from server.desk.window import Exchange, later, num_chars
from server.settings import DeskSettings

PUBLIC_SCOPE = "desk"
# When a conversation outgrows the context, its oldest turns go until it fills this share: the next few turns
# then keep their prefix.
WINDOW_SHARE = 0.75
MAX_WINDOWS = 1000
# So many tokens an answer needs at least; a tool's result that leaves less is too long.
MIN_ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads, what it may call, and how many tokens are left for its answer."""

    messages: Exchange
    max_tokens: int
    box: Toolbox


class Prompts:
    """Makes them, and remembers where each conversation's window begins."""

    def __init__(self, chat: ChatService, settings: DeskSettings) -> None:
        self._chat = chat
        self._settings = settings
        self._windows = dict[str, int]()

    def forget(self, conversation_id: str) -> None:
        """What the window began with may no longer be on the screen."""
        self._windows.pop(conversation_id, None)

    def fit(self, conversation_id: str, policy: Policy, turns: list[Exchange], box: Toolbox) -> Prompt:
        """The newest turns that leave room for an answer; never without the system message and the question."""
        limit = min(self._chat.spec.context_length, self._chat.spec.num_kv_tokens)
        room = limit - min(self._settings.max_answer_tokens, limit // 4)
        first = min(self._windows.get(conversation_id, 0), len(turns) - 1)
        while True:
            messages = (ChatMessage("system", policy.system), *(message for turn in turns[first:] for message in turn))
            num_tokens = self._chat.count_tokens(messages, self._settings.effort, box.offered)
            if num_tokens <= room or first == len(turns) - 1:
                return Prompt(messages, max(1, min(self._settings.max_answer_tokens, limit - num_tokens)), box)
            first = later(turns, first, (1 - WINDOW_SHARE * room / num_tokens) * num_chars(messages))
            self._remember_window(conversation_id, first)

    def _remember_window(self, conversation_id: str, first: int) -> None:
        self.forget(conversation_id)
        self._windows[conversation_id] = first
        if len(self._windows) > MAX_WINDOWS:
            del self._windows[next(iter(self._windows))]

    def _continued(self, prompt: Prompt, calls: Sequence[Call]) -> Prompt:
        """The prompt with these calls after it. A last result that leaves no room for an answer is too long."""
        limit = min(self._chat.spec.context_length, self._chat.spec.num_kv_tokens)
        for made in (calls, (*calls[:-1], *(replace(call, result=TOO_LONG) for call in calls[-1:]))):
            messages = (*prompt.messages, *steps(made))
            room = limit - self._chat.count_tokens(messages, self._settings.effort, prompt.box.offered)
            if room >= MIN_ANSWER_TOKENS:
                break
        return replace(prompt, messages=messages, max_tokens=max(1, min(self._settings.max_answer_tokens, room)))

    def job(self, conversation_id: str, prompt: Prompt, calls: Sequence[Call] = ()) -> ChatJob:
        prompt = self._continued(prompt, calls) if calls else prompt
        return ChatJob(
            messages=prompt.messages,
            sampling=replace(self._chat.default_sampling(), seed=secrets.randbits(31), max_tokens=prompt.max_tokens),
            effort=self._settings.effort,
            scope_public=PUBLIC_SCOPE,
            scope_private=conversation_id,
            adapter=self._chat.adapters.key_for(conversation_id),
            completion_id=new_id("cmpl"),
            tool_use=prompt.box.use(calls),
        )
