"""Calls in what a model says: read, repaired where that is clear, and otherwise left standing."""

import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.chat.detokenizer import Detokenizer, Vocabulary
from server.chat.tools import CALL_CLOSE, CALL_OPEN, CallReader, Tool, ToolUse
from tests.server.fakes import ByteTokenizer

USE = ToolUse((Tool("get", "{}"), Tool("ping", "{}")))
CALL = '<tool_call>\n{"name": "get", "arguments": {"a": "é"}}\n</tool_call>'


def _read(text: str, use: ToolUse = USE, cuts: list[int] | None = None) -> tuple[str, list[tuple[str, str]]]:
    reader = CallReader(use)
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts or ()), len(text)]
    said = "".join(reader.push(text[start:end]) for start, end in pairwise(edges)) + reader.flush()
    assert len({call.id for call in reader.calls}) == len(reader.calls)
    return said, [(call.name, call.arguments) for call in reader.calls]


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        (CALL, "", ['{"a": "é"}']),
        (f"Let me see.\n\n{CALL}\n", "Let me see.", ['{"a": "é"}']),
        (f"{CALL}\n{CALL}", "", ['{"a": "é"}'] * 2),
        (f"a {CALL}\n b", "ab", ['{"a": "é"}']),
        ('<tool_call>{"name": "get"}</tool_call>', "", ["{}"]),
        ('<tool_call>{"name": "get", "arguments": null}</tool_call>', "", ["{}"]),
        ('<tool_call>{"name": "get", "arguments": ""}</tool_call>', "", ["{}"]),
        ('<tool_call>{"name": "get", "arguments": "{\\"a\\": 1}"}</tool_call>', "", ['{"a": 1}']),
        ('<tool_call>{"name": "get", "parameters": {"a": 1}}</tool_call>', "", ['{"a": 1}']),
        ('<tool_call>{"name": "get", "arguments": {"a": [1, {"b": 2}</tool_call>', "", ['{"a": [1, {"b": 2}]}']),
        ('<tool_call>{"name": "get", "arguments": {"a": 1}}}\n</tool_call>', "", ['{"a": 1}']),
        ('<tool_call>{"name": "get", "arguments": {"a": "x\ny"}}</tool_call>', "", ['{"a": "x\\ny"}']),
        ('<tool_call>{"name": "get", "arguments": {"a": "</tool_call>"}}</tool_call>', "", ['{"a": "</tool_call>"}']),
        ('<tool_call>{"name": "get", "arguments": {}}', "", ["{}"]),
    ],
)
def test_calls_are_read_and_repaired(text: str, said: str, calls: list[str]) -> None:
    assert _read(text) == (said, [("get", arguments) for arguments in calls])


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        '<tool_call>{"name": ["get"], "arguments": {}}</tool_call>',
        '<tool_call>{"name": "get", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "get", "arguments": {"a": }}</tool_call>',
        '<tool_call>{"name": "get", "arguments": {"a": 1,</tool_call>',
        '<tool_call>{"name": "get", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "get", "arguments": {"a": 1e999}}</tool_call>',
        '<tool_call>{"name": "get", "arguments": {"a": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "get", "arguments": {}} and so on</tool_call>',
        '<tool_call>{"name": "get", "arguments": {"a": "un</tool_call>closed',
        '<tool_call>{"name": "get", "arguments": {"a": 1}',
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        "<tool_call>get(1)</tool_call> then",
        "<tool_call",
        "</tool_call>",
        "no call \n",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert _read(text) == (text, [])


def test_one_broken_call_takes_no_other_with_it() -> None:
    broken = '<tool_call>{"name": "get", "arguments": {"a": "un}</tool_call>'
    assert _read(f"{broken}\n{CALL}") == (broken, [("get", '{"a": "é"}')])


def test_one_call_alone_ends_the_answer() -> None:
    one = ToolUse(USE.tools, is_parallel=False)
    assert _read(f"a {CALL} b {CALL} c", one) == ("a", [("get", '{"a": "é"}')])
    named = ToolUse(USE.tools, "required", named="ping")
    assert _read(f"{CALL}x", named)[1] == [], "the other tool is not to be called"


PIECES = [
    CALL,
    "<tool_call>",
    "</tool_call>",
    '{"name": "get"',
    ', "arguments": {',
    '"a": "',
    '"}}',
    "}",
    " \n",
    "é 😀",
    "<tool",
    '{"name":"ping"}',
]


@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join), st.lists(st.integers(0, 500), max_size=12), st.booleans())
@example('<tool_call>"<tool_call>"</tool_call></tool_call>', [3, 14, 29], True)
def test_how_the_text_is_cut_changes_nothing(text: str, cuts: list[int], is_parallel: bool) -> None:
    use = ToolUse(USE.tools, is_parallel=is_parallel)
    said, calls = _read(text, use)
    assert _read(text, use, cuts) == (said, calls)
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)
    if not calls:
        assert said == text, "nothing is lost"


class _Control(ByteTokenizer):
    """The tags of a call are control tokens, which add no bytes."""

    def special_id(self, text: str) -> int | None:
        return {CALL_OPEN: 7, CALL_CLOSE: 8}.get(text, super().special_id(text))

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in (7, 8) else super().token_bytes(token_id)


def test_tags_that_are_control_tokens_are_seen() -> None:
    detokenizer = Detokenizer(Vocabulary(_Control()))
    assert "".join(map(detokenizer.push, [7, *b'{"name": "get"}', 8])) == '<tool_call>{"name": "get"}</tool_call>'
