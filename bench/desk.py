"""Customers in the desk at once, over its own API: what they wait, and what the web process takes from the machine meanwhile."""

import asyncio
import os
import uuid
from http import HTTPStatus
from pathlib import Path
from statistics import median
from time import perf_counter

import httpx

from backends.mini.shop import Language, load_shop
from bench.client import BenchError
from bench.rows import Row
from bench.servers import Target, peak_memory_bytes

NUM_CUSTOMERS = 20
CUSTOMER_QUESTIONS = 3
TTFT_METRIC = "kefu_time_to_first_token_seconds"


async def crowd(target: Target, pause_s: float) -> Row:
    """Twenty customers, three questions each, all of them at once. `ttft_s` is the mean until the model's first token of any kind, by the
    server's own clock; the rest is what customers saw. Raises BenchError when the desk is not kefu's, or refuses one."""
    start_s, web_cpu_s = perf_counter(), cpu_s(target.pid)
    async with httpx.AsyncClient(base_url=target.base_url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        try:
            before = await _first_tokens(client)
            asked = await asyncio.gather(*(_customer(client, number, pause_s) for number in range(NUM_CUSTOMERS)))
            seconds, count = (now - then for now, then in zip(await _first_tokens(client), before, strict=True))
        except httpx.HTTPError as error:
            raise BenchError(f"the desk at {target.base_url} did not answer a customer: {error!r}") from error
    first_words = [wait_s for waits in asked for wait_s in waits]
    return Row(
        target.name,
        "desk",
        NUM_CUSTOMERS,
        requests=len(first_words),
        wall_s=perf_counter() - start_s,
        ttft_s=seconds / count if count else None,
        first_answer_s=median(first_words),
        worst_answer_s=max(first_words),
        web_cpu_s=None if web_cpu_s is None else (cpu_s(target.pid) or web_cpu_s) - web_cpu_s,
        peak_memory_bytes=peak_memory_bytes(target.pid),
    )


async def _first_tokens(client: httpx.AsyncClient) -> tuple[float, float]:
    """How many seconds until first tokens there were in all, and how many first tokens."""
    lines = (await client.get("/metrics")).raise_for_status().text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith(TTFT_METRIC))
    return float(values.get(f"{TTFT_METRIC}_sum", 0)), float(values.get(f"{TTFT_METRIC}_count", 0))


async def _customer(client: httpx.AsyncClient, number: int, pause_s: float) -> list[float]:
    """Seconds from each question to the first words of its answer."""
    language: Language = "zh" if number % 2 else "en"
    suggestions = load_shop(language).suggestions
    token = (await _post(client, "/desk/visitors", {}, ""))["token"]
    opened = await _post(client, "/desk/conversations", {"language": language}, token)
    waits = []
    for turn in range(CUSTOMER_QUESTIONS):
        question = suggestions[(number + turn) % len(suggestions)]
        waits.append(await _ask(client, f"/desk/conversations/{opened['conversation_id']}/messages", question, token))
        await asyncio.sleep(pause_s)
    return waits


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, str], token: str) -> dict[str, str]:
    reply = await client.post(path, json=body, headers=_headers(token))
    if reply.status_code not in (HTTPStatus.OK, HTTPStatus.CREATED):
        raise BenchError(f"{path} answered {reply.status_code}: {reply.text[:300]}")
    answer: dict[str, str] = reply.json()
    return answer


async def _ask(client: httpx.AsyncClient, path: str, question: str, token: str) -> float:
    sent_s, marks = perf_counter(), dict[str, float]()
    body = {"text": question, "client_message_id": str(uuid.uuid4())}
    async with client.stream("POST", path, json=body, headers=_headers(token)) as reply:
        if reply.status_code != HTTPStatus.OK:
            raise BenchError(f"{path} answered {reply.status_code}: {(await reply.aread())[:300]!r}")
        async for line in reply.aiter_lines():
            if line.startswith("event: "):
                marks.setdefault(line.removeprefix("event: "), perf_counter() - sent_s)
    if "done" not in marks:
        raise BenchError(f"an answer of the desk did not end well; its events were {', '.join(marks)}")
    return marks.get("delta", marks["done"])


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def cpu_s(pid: int | None) -> float | None:
    """Processor seconds of one process without its children: of `kefu serve`, all but the engine. None where /proc does not tell."""
    stat = Path(f"/proc/{pid}/stat")
    if pid is None or not stat.exists():
        return None
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
