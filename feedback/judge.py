"""The judge: a model that says which of two answers is better, under a written constitution. Never on the reply path."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import httpx

Better = Literal["first", "second", "tie"]
Messages = Sequence[Mapping[str, str]]
# (prompt, first, second)
Judge = Callable[[Messages, str, str], Better]
CONSTITUTION = Path(__file__).with_name("constitution.md")
TIMEOUT_S = 600.0
SCHEMA = {
    "type": "object",
    "properties": {"article": {"type": "integer", "minimum": 0, "maximum": 8}, "better": {"enum": ["first", "second", "tie"]}},
    "required": ["article", "better"],
    "additionalProperties": False,
}
ASKED = 'Name the article that decides (0 for a tie) and the better answer: {"article": 0-8, "better": "first" | "second" | "tie"}'


class JudgeFailed(Exception):
    """The judge cannot be asked; the message is one sentence."""


class ModelServer:
    """An OpenAI-compatible server, such as a running kefu. A key is taken from KEFU_API_KEY."""

    def __init__(self, url: str) -> None:
        """Raises JudgeFailed."""
        headers = {"Authorization": f"Bearer {os.environ.get('KEFU_API_KEY', 'none')}"}
        try:
            self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, headers=headers)
            self._model = self._http.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError) as error:
            raise JudgeFailed(f"{url} serves no model to ask: {error}") from error

    def complete(self, messages: Messages, **wishes: object) -> list[str]:
        """The answers to one prompt that came to their end. Raises JudgeFailed."""
        body = {"model": self._model, "messages": [dict(turn) for turn in messages], **wishes}
        try:
            choices = self._http.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"]
            return [str(each["message"]["content"] or "") for each in choices if each.get("finish_reason", "stop") == "stop"]
        except (httpx.HTTPError, ValueError, LookupError) as error:
            raise JudgeFailed(f"the model gave no answer: {error}") from error

    def shaped(self, messages: Messages, schema: Mapping[str, object]) -> str:
        """Its likeliest answer under a JSON schema; empty where that came to no end. Raises JudgeFailed."""
        form = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
        return "".join(self.complete(messages, temperature=0, response_format=form)[:1])


class ModelJudge(ModelServer):
    """Asks once a comparison."""

    def __call__(self, prompt: Messages, first: str, second: str) -> Better:
        """What does not come as it was asked for is a tie. Raises JudgeFailed."""
        # As JSON no text can end early and speak for the judge.
        material = json.dumps({"conversation": [dict(turn) for turn in prompt], "first": first, "second": second}, ensure_ascii=False)
        system = {"role": "system", "content": CONSTITUTION.read_text("utf-8")}
        answer = self.shaped([system, {"role": "user", "content": f"{material}\n\n{ASKED}"}], SCHEMA)
        try:
            said = json.loads(answer)["better"]
        except (ValueError, LookupError, TypeError):
            return "tie"
        return said if said in ("first", "second") else "tie"


def both_orders(judge: Judge, prompt: Messages, first: str, second: str) -> Better:
    """The better one of two when the judge says so whichever stands first; else a tie. Judges like what they read first."""
    match judge(prompt, first, second), judge(prompt, second, first):
        case "first", "second":
            return "first"
        case "second", "first":
            return "second"
    return "tie"


def best_of(answers: Sequence[str], prompt: Messages, judge: Judge | None) -> str:
    """The answer that no later one beats; the first without a judge."""
    best, *others = dict.fromkeys(answers)
    for other in others:
        if judge is not None and both_orders(judge, prompt, best, other) == "second":
            best = other
    return best
