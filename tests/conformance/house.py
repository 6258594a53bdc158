"""Three houses with one door: kefu on llama.cpp, kefu on MLX, and kefu whose upstream is another kefu."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from backends.mini.shop import load_shop
from backends.registry import make_tokenizer
from tests.server.test_serve import Server, _serve
from tests.server.test_upstream import relaying, until

CHAT = "/v1/chat/completions"
QUESTION = "How long do I have to return something?"
PATIENCE_S = 120.0


def policy(days: int, opening: str = "") -> str:
    """A system message; what kefu-mini has to say about it repeats `days`."""
    return f"{opening}{load_shop('en').persona}\n\nPassages:\nReturns [1]: Unopened items can be returned within {days} days of delivery."


@dataclass(frozen=True, slots=True)
class Said:
    """One whole answer: its thought and text, and what the house counted."""

    thought: str
    content: str
    num_prompt: int
    num_cached: int
    num_completion: int
    num_reasoning: int

    @property
    def text(self) -> str:
        return f"{self.thought}|{self.content}"

    @property
    def num_computed(self) -> int:
        return self.num_prompt - self.num_cached


@dataclass(frozen=True, slots=True)
class House:
    """A served kefu. `engine` is the one that computes: the same, or its upstream; it has room for `num_kv_tokens`.

    `endless` lets neither a thought nor an answer end; `num_users` at once and `num_chats` in all are what tests have time for.
    """

    http: httpx.Client
    engine: Server
    num_kv_tokens: int
    num_users: int
    num_chats: int
    endless: dict[str, Any]

    def body(self, *turns: str, conversation: str = "", **fields: Any) -> dict[str, Any]:
        """Greedy and short. Turns alternate from the system's on; an empty first one is left out."""
        roles = ("system", *("user", "assistant") * len(turns))
        messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False) if text]
        asked = {"model": self.engine.model, "messages": messages, "prompt_cache_key": conversation}
        return asked | {"temperature": 0, "max_tokens": 28} | fields

    def ask(self, *turns: str, **fields: Any) -> Said:
        reply = self.http.post(CHAT, json=self.body(*turns, **fields), timeout=PATIENCE_S)
        assert reply.status_code == 200, reply.text
        whole = reply.json()
        message, usage = whole["choices"][0]["message"], whole["usage"]
        return Said(
            message.get("reasoning_content") or "",
            message["content"] or "",
            usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"],
            usage["completion_tokens"],
            usage["completion_tokens_details"]["reasoning_tokens"],
        )

    def hear(self, *turns: str, num_chunks: int, **fields: Any) -> str:
        """What is heard of an answer until that many chunks have come and the listener hangs up."""
        heard: dict[str, list[str]] = {"reasoning_content": [], "content": []}
        with self.http.stream("POST", CHAT, json=self.body(*turns, **fields) | {"stream": True}, timeout=PATIENCE_S) as reply:
            assert reply.status_code == 200
            chunks = (json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {"))
            for _, chunk in zip(range(num_chunks), chunks, strict=False):
                for name, said in heard.items():
                    said.append(chunk["choices"][0]["delta"].get(name) or "")
        return "|".join(map("".join, heard.values()))

    def num_open(self) -> float:
        """Requests anywhere in the house, waiting or running."""
        doors = {str(self.http.base_url).rstrip("/"), self.engine.url}
        return sum(
            Server(url, self.engine.process).metric(f"kefu_num_requests_{state}") for url in doors for state in ("running", "waiting")
        )


@contextmanager
def opened(kind: str, model: str, folder: Path) -> Iterator[House]:
    """The house `kind` over this model, while it is needed."""
    num_kv_tokens, num_users, num_chats = {"llama.cpp": (4096, 8, 80), "mlx": (640, 2, 8), "upstream": (4096, 8, 40)}[kind]
    tokenizer = make_tokenizer(model)
    ends = {str(token_id): -100 for token_id in (*tokenizer.eos_token_ids, tokenizer.special_id("</think>"))}
    endless = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "seed": 1, "max_tokens": 400, "logit_bias": ends}
    with _serve(model, folder / "engine", KEFU_ENGINE__THREADS="1", KEFU_ENGINE__NUM_KV_TOKENS=str(num_kv_tokens)) as engine:
        door = relaying(f"{engine.url}/v1", folder / "door") if kind == "upstream" else httpx.Client(base_url=engine.url)
        with door as http:
            until(lambda: http.get("/health/ready").status_code == 200)
            # The desk's own persona all but fills the small house: until it is computed it pushes out what a test has just said.
            until(lambda: engine.metric("kefu_engine_up") == 1, 30)
            until(lambda: engine.metric("kefu_kv_tokens_used") > 0 == engine.metric("kefu_num_warmups"), 30)
            yield House(http, engine, num_kv_tokens, num_users, num_chats, endless)
