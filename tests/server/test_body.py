"""Nothing but JSON gets in, and what is refused is refused fast, with the field's name."""

import json
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from server.body import MAX_DEPTH, parse_body, parse_json
from server.errors import InvalidRequest

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('abc\\"é[{', max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(json_values, st.booleans())
def test_json_is_read_as_python_reads_it(value: object, escaped: bool) -> None:
    raw = json.dumps(value, ensure_ascii=escaped).encode()
    assert parse_json(raw) == json.loads(raw)


@given(st.binary(max_size=200) | st.text('{}[]":,0123456789eE.\\u\x00 ad8NaI-', max_size=60).map(str.encode))
def test_any_other_bytes_are_an_invalid_request(raw: bytes) -> None:
    try:
        parse_json(raw)
    except InvalidRequest as error:
        assert str(error)
    else:
        json.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":' + b"1" * 5000 + b"}",
        b'{"a":1,"a":2}',
        b'{"a":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":"\\u0000"}',
        b'{"a":"\x00"}',
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" + b"[]," * 1_000_000 + b"1]",
        b'["' + b'\\"' * 1_000_000,
    ],
    ids=range(17),
)
def test_what_is_not_json_is_refused_fast_and_small(raw: bytes) -> None:
    tracemalloc.start()
    began = time.thread_time()
    with pytest.raises(InvalidRequest):
        parse_json(raw)
    seconds, (_, peak) = time.thread_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1  # ten times that without tracing
    assert peak < 20_000_000


def test_depth_counts_brackets_outside_strings() -> None:
    assert parse_json(json.dumps("[{" * 1000).encode()) == "[{" * 1000
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(InvalidRequest, match="nests deeper"):
        parse_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    count: int = Field(ge=1)


class _Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    items: list[_Inner | str] = []
    name: str


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b'{"name":5}', "name"),
        (b"{}", "name"),
        (b'{"name":"x","items":["a",{"count":0}]}', "items[1].count"),
        (b'{"name":"x","items":["a",{"count":true}]}', "items[1].count"),
        (b'{"name":"x","items":["a",{}]}', "items[1].count"),
        (b'{"name":"x","nmae":1}', "nmae"),
    ],
)
def test_the_refused_field_is_named_and_its_value_is_not(raw: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_body(raw, _Outer)
    assert caught.value.param == param
    assert parse_body(b'{"name":"x","items":["a",{"count":1}]}', _Outer).name == "x"


@pytest.mark.parametrize("raw", [b"[]", b"null", b'"x"', b"1"])
def test_a_body_is_an_object(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="object"):
        parse_body(raw, _Outer)
