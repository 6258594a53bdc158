"""Grammars over the real vocabularies: what may follow, what is refused, and that neither takes long."""

import asyncio
import json
import time
from random import Random

import numpy as np
import pytest

from backends.constraint import MAX_GRAMMAR_CHARS, GrammarConstraint, Grammars
from backends.protocol import Tokenizer
from backends.registry import make_tokenizer
from tests.conftest import WEIGHTS

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", "愤怒"]}, "sizes": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}},
    "required": ["mood", "sizes"],
    "additionalProperties": False,
}


def _json(schema: object) -> str:
    return f"start: %json {json.dumps(schema)}"


@pytest.fixture(scope="module", params=["kefu-mini.gguf", "mlx"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "mlx":
        pytest.importorskip("tokenizers")
    return make_tokenizer(str(WEIGHTS / request.param))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(lambda: tokenizer)


def _ready(grammars: Grammars, grammar: str) -> GrammarConstraint:
    constraint = grammars.constrain(grammar)
    deadline = time.monotonic() + 30
    while not constraint.is_ready:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return constraint


def _walk(constraint: GrammarConstraint, tokenizer: Tokenizer, seed: int, limit: int = 300) -> str:
    """A text of tokens drawn blindly from those that are allowed."""
    random, written = Random(seed), list[int]()
    while len(written) < limit:
        token_id = int(random.choice(np.flatnonzero(constraint.allowed(written))))
        if token_id in tokenizer.eos_token_ids:
            break
        written.append(token_id)
    return b"".join(map(tokenizer.token_bytes, written)).decode()


def test_whatever_is_drawn_satisfies_the_schema(grammars: Grammars, tokenizer: Tokenizer) -> None:
    for seed in range(20):
        constraint = _ready(grammars, _json(SCHEMA))
        text = _walk(constraint, tokenizer, seed)
        value = json.loads(text)
        assert list(value) == ["mood", "sizes"] and value["mood"] in ("calm", "愤怒")
        assert len(value["sizes"]) <= 3 and all(type(size) is int for size in value["sizes"])
        assert not constraint.is_broken


def test_when_all_is_written_only_the_end_may_follow(grammars: Grammars, tokenizer: Tokenizer) -> None:
    constraint = _ready(grammars, 'start: "yes" <tool_call>')
    written = tokenizer.encode("yes<tool_call>", special=True)
    for length in range(len(written)):
        assert constraint.allowed(written[:length])[written[length]]
    assert set(np.flatnonzero(constraint.allowed(written))) == set(tokenizer.eos_token_ids)
    assert not constraint.is_broken


def test_special_tokens_are_no_text(grammars: Grammars, tokenizer: Tokenizer) -> None:
    constraint = _ready(grammars, _json({"type": "string"}))
    allowed = constraint.allowed(tokenizer.encode('"', special=False))
    assert not any(allowed[tokenizer.special_id(text)] for text in tokenizer.special_texts())
    assert allowed.sum() > tokenizer.vocab_size // 2


def test_what_breaks_the_grammar_ends_the_answer(grammars: Grammars, tokenizer: Tokenizer) -> None:
    constraint = _ready(grammars, 'start: "yes"')
    allowed = constraint.allowed(tokenizer.encode("no", special=False))
    assert set(np.flatnonzero(allowed)) == set(tokenizer.eos_token_ids)
    assert constraint.is_broken


def _wide(count: int) -> dict[str, object]:
    return {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(count)}}


def _nested(depth: int) -> dict[str, object]:
    return {"type": "object", "properties": {"a": _nested(depth - 1), "b": _nested(0)}} if depth else {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "is_fine"),
    [
        (SCHEMA, True),
        ({}, True),
        (_nested(25), True),
        ({"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}, True),
        ({"enum": [f"value {i}" for i in range(4000)]}, True),
        ({"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"}, True),
        ({"type": "array", "minItems": 10**6, "items": {"type": "string", "minLength": 10**6}}, True),
        ({"$ref": "#"}, False),
        ({"type": "hiccup"}, False),
        ({"$ref": "http://127.0.0.1:9/schema"}, False),
        ({"allOf": [{"anyOf": [{"required": [f"k{i}{j}"], **_wide(9)} for j in range(6)]} for i in range(9)]}, False),
        (_wide(5000), False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_any_schema_is_judged_within_a_second_or_so(grammars: Grammars, schema: object, is_fine: bool) -> None:
    asyncio.run(grammars.check(_json(SCHEMA)))
    began = time.thread_time()
    reason = asyncio.run(grammars.check(_json(schema)))
    assert (reason == "") is is_fine
    assert time.thread_time() - began < 0.5, "the caller's own thread does none of the work"


def test_the_longest_grammars_compile_in_bounded_time(grammars: Grammars) -> None:
    def cpu_s(schema: object) -> float:
        async def compiled() -> float:
            began = time.process_time()
            await grammars.check(_json(schema))
            return time.process_time() - began

        return asyncio.run(compiled())

    widest = next(n for n in range(3000, 0, -50) if len(_json(_wide(n))) <= MAX_GRAMMAR_CHARS)
    assert cpu_s(_wide(widest)) < 3


def test_a_sequence_waits_for_its_grammar_and_nobody_else_does(grammars: Grammars) -> None:
    slow = next(n for n in range(3000, 0, -50) if len(_json(_wide(n))) <= MAX_GRAMMAR_CHARS)
    began = time.perf_counter()
    constraint = grammars.constrain(_json(_wide(slow)))
    assert time.perf_counter() - began < 0.1
    assert not constraint.is_ready
