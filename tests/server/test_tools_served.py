"""Tools, formats and choices as people use them: the official client, a real server, the real model, whatever it would like to say."""

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from backends.mini.shop import load_shop, system_message
from tests.server.test_serve import Server, _serve

WHERE: list[Any] = [{"role": "user", "content": "Where is my order A-1001?"}]
QUICK: dict[str, Any] = {"max_tokens": 200, "extra_body": {"thinking_budget": 12}}
ORDER: Any = {
    "type": "function",
    "function": {
        "name": "get_order",
        "description": "Look an order up.",
        "parameters": {
            "type": "object",
            "properties": {"order": {"$ref": "#/$defs/order"}, "urgent": {"type": "boolean"}},
            "required": ["order", "urgent"],
            "$defs": {"order": {"type": "string", "pattern": "^A-[0-9]{4}$"}},
        },
    },
}
PING: Any = {"type": "function", "function": {"name": "ping"}}


class Line(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sku: Literal["TEA", "CUP"]
    count: Annotated[int, Field(ge=0, le=99)]


class Ticket(BaseModel):
    """Bounded in every direction, so that no model can fill a whole answer with it."""

    model_config = ConfigDict(extra="forbid")
    mood: Literal["calm", "angry"]
    lines: Annotated[list[Line], Field(max_length=2)]
    escalate: bool


@pytest.fixture(scope="module")
def server(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with _serve(model_path, tmp_path_factory.mktemp("data")) as server:
        yield server


def _ask(server: Server, **fields: Any) -> Any:
    return server.client.chat.completions.create(**{"model": server.model, "messages": WHERE, "seed": 3} | QUICK | fields)


@pytest.mark.parametrize("thinks", [True, False])
def test_a_call_that_must_come_comes_and_streams_the_same(server: Server, thinks: bool) -> None:
    asked: dict[str, Any] = {"tools": [ORDER, PING], "tool_choice": {"type": "function", "function": {"name": "get_order"}}}
    if not thinks:
        asked["extra_body"] = {"thinking_budget": 0}
    choice = _ask(server, **asked).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.type, call.function.name) == ("tool_calls", None, "function", "get_order")
    assert set(json.loads(call.function.arguments)) == {"order", "urgent"}
    assert bool(getattr(choice.message, "reasoning_content", None)) is thinks
    chunks = list(_ask(server, stream=True, **asked))
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    assert [part.index for part in parts] == [0] * len(parts)
    assert [part.function.name for part in parts if part.function.name] == ["get_order"]
    assert len([part.id for part in parts if part.id]) == 1
    assert "".join(part.function.arguments or "" for part in parts) == call.function.arguments
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["tool_calls"]


def test_some_call_is_made_when_one_is_required_and_one_alone_when_they_are_not_parallel(server: Server) -> None:
    for seed in range(4):
        calls = _ask(server, tools=[ORDER, PING], tool_choice="required", seed=seed, temperature=1.0).choices[0].message.tool_calls
        assert calls and len({call.id for call in calls}) == len(calls)
        for call in calls:
            arguments = json.loads(call.function.arguments)
            assert (set(arguments) == {"order", "urgent"}) if call.function.name == "get_order" else arguments == {}
        fields: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 1.0, "seed": seed}
        assert len(_ask(server, tools=[ORDER, PING], **fields).choices[0].message.tool_calls) == 1
    bare = _ask(server, tools=[PING], tool_choice="required", parallel_tool_calls=False).choices[0].message.tool_calls[0]
    assert bare.function.arguments == "{}"


def test_the_whole_loop_and_a_choice_of_none(server: Server) -> None:
    first = _ask(server, tools=[ORDER], tool_choice="required", parallel_tool_calls=False).choices[0].message
    answered = [*WHERE, first.model_dump(), {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": '{"state": "shipped"}'}]
    second = _ask(server, messages=answered, tools=[ORDER], tool_choice="none")
    assert second.choices[0].message.tool_calls is None
    assert second.choices[0].message.content and "<tool_call>" not in second.choices[0].message.content
    assert second.usage.prompt_tokens > _ask(server, tools=[ORDER], tool_choice="none").usage.prompt_tokens
    for broken in (answered[:2] + WHERE, [*answered[:2], answered[2] | {"tool_call_id": "other"}], [*WHERE, answered[2]]):
        with pytest.raises(openai.BadRequestError):
            _ask(server, messages=broken, tools=[ORDER])


def test_a_schema_holds_twenty_times_after_a_thought(server: Server) -> None:
    fields: dict[str, Any] = {"temperature": 1.2, "max_tokens": 400, "extra_body": QUICK["extra_body"]}
    for num_choices in (8, 8, 4):
        asked: dict[str, Any] = {"model": server.model, "messages": WHERE, "response_format": Ticket, "seed": num_choices} | fields
        for choice in server.client.chat.completions.parse(**asked, n=num_choices).choices:
            assert isinstance(choice.message.parsed, Ticket)
            assert getattr(choice.message, "reasoning_content", None)


def test_parsed_streams_and_parsed_calls(server: Server) -> None:
    with server.client.chat.completions.stream(
        model=server.model, messages=WHERE, response_format=Ticket, seed=1, max_tokens=400, extra_body=QUICK["extra_body"]
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Ticket)
    tool = openai.pydantic_function_tool(Line, name="add_line")
    fields: Any = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    answer = server.client.chat.completions.parse(model=server.model, messages=WHERE, seed=1, **fields, **QUICK)
    (call,) = answer.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Line)


def test_any_object_or_what_fits_of_it(server: Server) -> None:
    for seed in range(5):
        choice = _ask(server, response_format={"type": "json_object"}, seed=seed, max_tokens=120).choices[0]
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
        else:
            assert choice.finish_reason == "length"
    cut = _ask(server, response_format={"type": "json_object"}, max_tokens=20, extra_body={"thinking_budget": 16}).choices[0]
    assert cut.finish_reason == "length"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "hiccup"}}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/no"}}}, "response_format.json_schema.schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"not": {"type": "null"}}}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [f"{i} secret" * 9 for i in range(9999)]}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_without_being_repeated(server: Server, fields: Any, param: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            _ask(server, response_format=fields, stream=stream)
        assert caught.value.param == param
        assert not any(word in str(caught.value) for word in ("hiccup", "secret", "#/no"))


def test_a_tool_whose_schema_cannot_be_enforced_is_named(server: Server) -> None:
    bad = {"type": "function", "function": {"name": "bad", "parameters": {"properties": {"a": {"type": "hiccup"}}}}}
    with pytest.raises(openai.BadRequestError) as caught:
        _ask(server, tools=[PING, bad], tool_choice="required")
    assert caught.value.param == "tools[1].function.parameters"


def test_choices_share_a_prompt_and_differ_by_their_seeds(server: Server) -> None:
    said: list[Any] = [{"role": "system", "content": system_message(load_shop("en"), "en")}, *WHERE]
    fields: dict[str, Any] = {"messages": said, "temperature": 0.6, "max_tokens": 40, "seed": 11}
    several = _ask(server, n=3, **fields)
    last = _ask(server, **fields | {"seed": 13})
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert several.choices[2].message == last.choices[0].message
    assert several.usage.prompt_tokens == last.usage.prompt_tokens
    streamed, ends = ["", "", ""], []
    chunks = list(_ask(server, n=3, stream=True, stream_options={"include_usage": True}, **fields))
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        streamed[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert streamed == [choice.message.content for choice in several.choices]
    assert ends == [0, 1, 2]
    assert chunks[-1].usage.total_tokens == several.usage.total_tokens
    wild = _ask(server, n=8, temperature=2.0, max_tokens=20, extra_body={"thinking_budget": 0})
    assert len({choice.message.content for choice in wild.choices}) > 1


def test_choices_hold_and_count_their_prompt_once(server: Server) -> None:
    names = ("kefu_kv_tokens_used", "kefu_prompt_tokens_total", "kefu_completion_tokens_total")
    time.sleep(1)  # the engine tells its numbers twice a second
    before = [server.metric(name) for name in names]
    fresh: list[Any] = [{"role": "user", "content": "Please read this to the end: " + "one two three four five " * 40}]
    usage = _ask(server, messages=fresh, n=4, max_tokens=3).usage
    time.sleep(1)
    held, prompt, completion = (server.metric(name) - was for name, was in zip(names, before, strict=True))
    assert held < 1.5 * usage.prompt_tokens
    assert (prompt, completion) == (usage.prompt_tokens, usage.completion_tokens)
