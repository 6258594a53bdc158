"""What `/v1` takes, refuses, and names."""

import json

import pytest

from backends.sequence import SamplingParams
from server.body import parse_body
from server.errors import InvalidRequest, Unsupported
from server.schema.openai import ChatCompletionRequest, CompletionRequest

USER = {"role": "user", "content": "secret"}
BASE = {"model": "m", "messages": [USER]}
DEFAULTS = SamplingParams(temperature=0.6, top_k=40, top_p=0.95, max_tokens=0)


def _chat(**fields: object) -> ChatCompletionRequest:
    return parse_body(json.dumps(BASE | fields).encode(), ChatCompletionRequest)


def _sampling(**fields: object) -> SamplingParams:
    return _chat(**fields).sampling(DEFAULTS, random_seed=lambda: 7)


NUMBERS = ["temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed"]
NUMBERS += ["max_tokens", "max_completion_tokens", "thinking_budget", "n"]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [True, "1", "hot", [], {}, 1e300, -1e300])
def test_a_number_is_a_number_in_its_range(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _chat(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("top_p", 1.5),
        ("presence_penalty", 3),
        ("n", 0),
        ("n", 129),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_completion_tokens", 0),
        ("seed", 2**63),
        ("seed", 1.0),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", ["a"] * 5),
        ("stop", "x" * 1000),
        ("stop", 5),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {str(i): 1 for i in range(301)}),
        ("reasoning_effort", "banana"),
        ("stream", 1),
        ("stream_options", {}),
        ("top_logprobs", 5),
        ("response_format", "text"),
        ("messages", []),
        ("messages", "hi"),
        ("messages", [USER] * 1001),
        ("model", ""),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _chat(**{field: value})
    assert caught.value.param == field
    assert not isinstance(caught.value, Unsupported)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({}, "messages[1].role"),
        ({"role": 123, "content": "x"}, "messages[1].role"),
        ({"role": "king", "content": "x"}, "messages[1].role"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "function", "content": "x"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": 5}, "messages[1].content"),
        ({"role": "user", "content": []}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "secret"}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages[1].content[0]"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[1].tool_calls[0].id"),
        ({"role": "assistant", "content": "x"}, "messages[1].role"),
        ("hi", "messages[1]"),
    ],
)
def test_a_bad_message_is_refused_by_place(message: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _chat(messages=[USER, message])
    assert caught.value.param == param
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
    ],
)
def test_what_is_not_built_says_so(fields: dict[str, object], param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        _chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"stop": None},
    ],
)
def test_asking_for_what_happens_anyway_is_fine(fields: dict[str, object]) -> None:
    assert _chat(**fields).ignored_fields == set()


def test_ignored_fields_are_named_and_unknown_ones_told_apart() -> None:
    asked = _chat(service_tier="auto", mystery=1, messages=[USER | {"name": "Ann"}, USER | {"odd": 1}])
    assert asked.ignored_fields == {"service_tier", "mystery", "messages[].name", "messages[].odd"}
    assert asked.unknown_fields == {"mystery", "messages[].odd"}


def test_text_parts_are_the_joined_string_and_old_thoughts_are_not_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = _chat(messages=[{"role": "user", "content": parts}, {"role": "assistant", "content": "c", "reasoning_content": "x"}, USER])
    assert [message.text for message in asked.messages] == ["ab", "c", "secret"]


def test_sampling_is_what_was_asked_then_the_models_own() -> None:
    assert _sampling() == SamplingParams(temperature=0.6, top_k=40, top_p=0.95, seed=7, max_tokens=0)
    asked = _sampling(
        temperature=0, top_k=1, seed=5, max_tokens=9, max_completion_tokens=4, logit_bias={"3": -100}, logprobs=True, top_logprobs=2
    )
    assert asked == SamplingParams(0, 1, 0.95, seed=5, max_tokens=4, logit_bias={3: -100}, num_top_logprobs=2)
    assert 0 <= _sampling(seed=-1).seed < 2**32 - 1


def test_a_prompt_is_text_or_token_ids() -> None:
    def asked(**fields: object) -> CompletionRequest:
        return parse_body(json.dumps({"model": "m"} | fields).encode(), CompletionRequest)

    assert asked(prompt="x").prompt == "x"
    assert asked(prompt=[1, 2]).prompt == [1, 2]
    for fields, param in [({}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [-1]}, "prompt[0]"), ({"prompt": {}}, "prompt")]:
        with pytest.raises(InvalidRequest) as caught:
            asked(**fields)
        assert caught.value.param == param
    unsupported = [{"prompt": ["a"]}, {"best_of": 2}, {"echo": True}, {"suffix": "x"}, {"logprobs": 1}]
    for fields in unsupported:
        with pytest.raises(Unsupported):
            asked(**{"prompt": "x"} | fields)
