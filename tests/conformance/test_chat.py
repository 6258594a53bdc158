"""What a house promises at its door, over HTTP: the same over llama.cpp, over MLX, and over an upstream."""

import asyncio
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import httpx
import pytest

from tests.conformance.house import CHAT, PATIENCE_S, QUESTION, House, opened, policy
from tests.server.test_upstream import until

CLOSE_TOKENS = 2
QUESTIONS = (QUESTION, "And opened items?", "Who pays for the parcel?", "When do I get my money?", "Thank you!")


@pytest.fixture(scope="module", params=["llama.cpp", "mlx", "upstream"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    if request.param == "mlx":
        pytest.importorskip("mlx_lm")
    model = request.getfixturevalue("mlx_path" if request.param == "mlx" else "model_path")
    with opened(request.param, model, tmp_path_factory.mktemp("house")) as house:
        yield house


def test_a_seed_gives_the_same_text_in_any_company_and_another_seed_another(house: House) -> None:
    def drawn(seed: int) -> str:
        return house.ask("You tell stories.", "Once upon a time", conversation=f"{seed}", temperature=1.0, seed=seed, max_tokens=16).text

    alone = drawn(5)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(drawn, (6, 5, 7, 5)))
    assert together[1] == together[3] == alone
    assert len(set(together)) == 3


def test_cold_as_warm(house: House) -> None:
    system = policy(4826, opening="24 hours a day. ")
    cold, warm = (house.ask(system, QUESTION, conversation="again") for _ in range(2))
    assert cold.num_cached < 8 and warm.num_cached == warm.num_prompt - 1
    assert warm.text == cold.text
    assert "4826" in cold.text


def test_a_system_message_is_computed_once_and_a_strangers_words_are_nobodys(house: House) -> None:
    system, other = policy(1753, opening="For shoes. "), "Where is my order?"
    house.ask(system, QUESTION, conversation="ann", max_tokens=1)
    heard, unheard = (house.ask(system, question, conversation="bo", max_tokens=1) for question in (QUESTION, other))
    num_system = unheard.num_prompt - house.ask("", other, max_tokens=1).num_prompt
    assert num_system - 1 <= unheard.num_cached
    assert heard.num_cached == unheard.num_cached, "how fast an answer begins tells nothing about what others have typed"


@pytest.mark.parametrize("is_idle", [True, False])
def test_over_five_turns_only_what_is_new_is_computed(house: House, is_idle: bool) -> None:
    turns, num_said = [policy(2468, opening=f"Idle: {is_idle}. ")], 0
    for number, question in enumerate(QUESTIONS):
        alone = house.ask("", question, max_tokens=1, conversation=f"alone {is_idle}")
        said = house.ask(*turns, question, thinking_budget=6, max_tokens=20, conversation=f"five {is_idle}")
        assert said.content
        if number:
            assert said.num_computed <= alone.num_prompt + (0 if is_idle else num_said)
        turns += [question, said.content]
        num_said = said.num_completion - said.num_reasoning
        if is_idle:
            time.sleep(0.6)


def test_thoughts_keep_to_their_budget(house: House) -> None:
    thoughts = {budget: house.ask(policy(1357), QUESTION, thinking_budget=budget, max_tokens=48) for budget in (0, 4, 10)}
    for budget, said in thoughts.items():
        assert said.num_reasoning <= (budget + CLOSE_TOKENS if budget else 0)
        assert (said.thought == "") == (budget == 0)
        assert said.content and "think>" not in said.text


def test_users_with_secrets_hear_in_company_what_they_hear_alone(house: House) -> None:
    secrets = [1009 + 1111 * i for i in range(house.num_users)]

    def asked(secret: int, company: str) -> str:
        return house.ask(policy(secret), QUESTION, conversation=f"{company} {secret}").text

    alone = [asked(secret, "alone") for secret in secrets]
    with ThreadPoolExecutor(len(secrets)) as pool:
        for _ in range(3):
            assert list(pool.map(asked, secrets, ["company"] * len(secrets))) == alone
    for secret, text in zip(secrets, alone, strict=True):
        assert str(secret) in text
        assert not any(str(other) in text for other in secrets if other != secret)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("state", ["prefill", "thinking", "answer"])
def test_a_client_that_leaves_is_gone_from_the_whole_house_within_a_second(house: House, state: str, stream: bool) -> None:
    wanted = house.ask(policy(8642), QUESTION, max_tokens=8)
    body = {
        "prefill": house.body(f"{state} {stream} {'tea ' * (house.num_kv_tokens // 3)}", "Well?"),
        "thinking": house.body("", "Well?", thinking_budget=4000, **house.endless),
        "answer": house.body("", "Well?", reasoning_effort="none", **house.endless),
    }[state]
    before = [house.engine.metric(f"kefu_{name}_tokens_total") for name in ("completion", "reasoning")]
    asyncio.run(_leave(house, body | {"stream": stream}, after_s=0 if state == "prefill" else 0.3))
    until(lambda: house.num_open() == 0, 1)
    made, thought = (
        house.engine.metric(f"kefu_{name}_tokens_total") - had for name, had in zip(("completion", "reasoning"), before, strict=True)
    )
    # The prompt that fits the small house is soon computed: a few tokens may have come by then, never the whole answer.
    most = 0 if house.num_kv_tokens > 1000 else 20
    assert {"prefill": made <= most, "thinking": 0 < made == thought < 400, "answer": 0 == thought < made < 400}[state], (made, thought)
    assert house.ask(policy(8642), QUESTION, max_tokens=8).text == wanted.text


async def _leave(house: House, body: dict[str, object], after_s: float) -> None:
    """Hang up that long after the engine took the request up."""
    async with httpx.AsyncClient(base_url=house.http.base_url, timeout=PATIENCE_S) as client:
        request = asyncio.create_task(client.post(CHAT, json=body))
        while not await asyncio.to_thread(house.engine.metric, "kefu_num_requests_running"):
            assert not request.done()
        await asyncio.sleep(after_s)
        assert request.cancel()
        await asyncio.wait([request])


def _strays(house: House, num_chats: int) -> list[tuple[int, str]]:
    """Secrets and texts of interleaved chats in which something foreign was heard, or not what is heard alone.

    A check digit keeps secrets two digits apart, so that a slip of the model is no leak. Some listeners hang up early.
    """
    draw = Random(num_chats)
    secrets = [10 * number + sum(map(int, str(number))) % 10 for number in draw.sample(range(100, 1000), num_chats)]
    cuts = [draw.choice((1, 4, 9, 99)) for _ in secrets]

    def heard(secret: int, cut: int, company: str = "company") -> str:
        return house.hear(policy(secret), f"I bought {secret} cups. {QUESTION}", conversation=f"{company} {secret}", num_chunks=cut)

    num_evicted = house.engine.metric("kefu_prefix_evictions_total")
    with ThreadPoolExecutor(house.num_users) as pool:
        texts = list(pool.map(heard, secrets, cuts))
    assert house.engine.metric("kefu_prefix_evictions_total") > num_evicted
    whole = [(secret, text) for secret, cut, text in zip(secrets, cuts, texts, strict=True) if cut == 99]
    assert sum(str(secret) in text for secret, text in whole) > len(whole) / 2, "a secret that is never told cannot leak"
    foreign = [(s, text) for s, text in zip(secrets, texts, strict=True) if {int(n) for n in re.findall(r"\d+", text)} & {*secrets} - {s}]
    return foreign + [(secret, text) for secret, text in whole[:: len(whole) // 5 + 1] if text != heard(secret, 99, "alone")]


def test_interleaved_chats_keep_their_secrets(house: House) -> None:
    assert _strays(house, house.num_chats) == []


def test_what_comes_in_between_changes_no_answer(house: House) -> None:
    _probe(house, house.num_chats // 20 + 1)


@pytest.mark.soak
def test_interleaved_chats_keep_their_secrets_over_200_of_them(house: House) -> None:
    assert _strays(house, 200) == []
    _probe(house, 100)


def _probe(house: House, rounds: int) -> None:
    wanted = house.ask(policy(7031), QUESTION, conversation="probe").text
    for number in range(rounds):
        house.ask(policy(3000 + number), QUESTION[: 8 + number % 30], temperature=1.0, max_tokens=4, conversation=f"{number}")
        assert house.ask(policy(7031), QUESTION, conversation="probe").text == wanted
