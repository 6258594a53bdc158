"""The workloads against a fake server whose cache is perfect, so that every count is known."""

from collections.abc import AsyncIterator

import pytest

from bench import workloads
from bench.prompts import Prompts
from bench.servers import Target
from bench.workloads import Load
from tests.bench.fake_server import FakeServer, listening


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
async def load(server: FakeServer) -> AsyncIterator[Load]:
    async with listening(server) as url:
        target = Target("kefu", url, "fake-1", body={"reasoning_effort": "low"}, endless={"logit_bias": {"7": -100}})
        yield Load(target, Prompts("seed"), places=8, tokens=16, pause_s=0)


@pytest.mark.anyio
async def test_decode_streams_do_not_end_by_themselves(load: Load, server: FakeServer) -> None:
    (row,) = await workloads.decode(load, 4)
    assert (row.workload, row.streams, row.completion_tokens, row.ended_early) == ("decode", 4, 64, 0)
    assert len({request["messages"][0]["content"] for request in server.seen}) == 4
    for request in server.seen:
        assert request["logit_bias"] == {"7": -100}
        assert request["reasoning_effort"] == "low"
        assert request["stream_options"] == {"include_usage": True}


@pytest.mark.anyio
async def test_prefill_counts_prompt_tokens_that_were_computed(load: Load) -> None:
    (row,) = await workloads.prefill(load)
    assert row.computed_tokens is not None and row.computed_tokens > workloads.POLICY_WORDS
    assert row.wall_s is not None
    assert row.prefill_tokens_per_s == pytest.approx(row.computed_tokens / row.wall_s)


@pytest.mark.anyio
async def test_a_cold_burst_shares_one_new_prompt_and_a_warm_burst_one_seen_before(load: Load, server: FakeServer) -> None:
    cold, warm = await workloads.burst(load)
    assert (cold.workload, warm.workload) == ("burst-cold", "burst-warm")
    policies = [request["messages"][0]["content"] for request in server.seen]
    assert len(set(policies[:8])) == 1
    assert len(set(policies[8:])) == 1
    assert policies[0] != policies[8]
    assert len(policies[0].split()) >= workloads.POLICY_WORDS
    assert [request["max_tokens"] for request in server.seen[8:10]] == [1, workloads.BURST_TOKENS]
    assert cold.computed_tokens is not None and cold.computed_tokens > workloads.POLICY_WORDS > (warm.computed_tokens or 0)


@pytest.mark.anyio
async def test_turns_send_back_the_answer_without_its_thinking(load: Load, server: FakeServer) -> None:
    rows = await workloads.turns(load)
    assert [row.workload for row in rows] == [f"turn-{number}" for number in range(1, 6)]
    history = server.seen[4]["messages"]
    assert [message["role"] for message in history] == ["system"] + ["user", "assistant"] * 4 + ["user"]
    assert "hm" not in history[2]["content"]
    assert "logit_bias" not in server.seen[0]
    assert server.seen[0]["thinking_budget"] < server.seen[0]["max_tokens"]
    for number, row in enumerate(rows[1:], 1):
        assert row.ideal_tokens == len(server.seen[number]["messages"][-1]["content"].split()) + 4 + 4


@pytest.mark.anyio
async def test_places_are_ideal_when_every_prompt_token_is_computed_once(load: Load, server: FakeServer) -> None:
    (row,) = await workloads.places(load)
    assert (row.workload, row.streams, row.requests) == ("places", 8, 80)
    asked = server.prompts[:80]
    tree = {tuple(prompt[: end + 1]) for prompt in asked for end in range(len(prompt))}
    assert row.ideal_tokens is not None
    # The customers' header after the shared prompt is counted for each of them: they may not share it.
    assert len(tree) <= row.ideal_tokens <= len(tree) + 3 * workloads.NUM_CUSTOMERS
    assert row.computed_tokens is not None and row.computed_tokens <= row.ideal_tokens


@pytest.mark.anyio
async def test_guessing_is_measured_on_one_stream_that_quotes_and_one_that_does_not(load: Load, server: FakeServer) -> None:
    quoting, free = await workloads.guess(load)
    assert [(row.workload, row.streams, row.requests) for row in (quoting, free)] == [("guess-quoting", 1, 4), ("guess-free", 1, 4)]
    quotes, drawn = server.seen[:4], server.seen[4:]
    assert {request["temperature"] for request in quotes} == {0} and all("Passages:" in each["messages"][0]["content"] for each in quotes)
    assert all(request["logit_bias"] == {"7": -100} and len(request["messages"]) == 1 for request in drawn)
    assert {request["seed"] for request in server.seen} == {1}
