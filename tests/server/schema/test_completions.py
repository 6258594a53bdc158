"""Chunks are assembled from bytes, so every text must survive."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.schema.completions import ChatChunks, Completion, Logprobs, TextChunks, count_usage, logprob_entry

WHOLE = Completion('chatcmpl-"1', "chat.completion", 1, 'm"\n', "f")
texts = st.text(st.characters(exclude_categories=["Cs"]))


def _read(chunk: bytes) -> dict[str, object]:
    assert chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") and chunk.count(b"\n") == 2
    read: dict[str, object] = json.loads(chunk[6:])
    return read


@given(texts, st.booleans())
def test_any_text_in_any_chunk_is_valid_json_and_comes_back(text: str, counts_usage: bool) -> None:
    chat, plain = ChatChunks(WHOLE, counts_usage=counts_usage), TextChunks(WHOLE, counts_usage=counts_usage)
    entry = logprob_entry(text.encode(), -1.0, ((text.encode(), -1.0),))
    deltas = {chat.content(text, None): {"content": text}, chat.content(text, Logprobs([entry])): {"content": text}}
    deltas[chat.reasoning(text)] = {"reasoning_content": text, "reasoning": text}
    for chunk, delta in deltas.items():
        assert _read(chunk)["choices"][0]["delta"] == delta  # type: ignore[index]
    assert _read(plain.content(text))["choices"][0]["text"] == text  # type: ignore[index]
    for chunk in (*deltas, chat.first(), chat.end("stop"), plain.first(), plain.content(text), plain.end("length")):
        read = _read(chunk)
        assert (read["id"], read["model"], read["created"]) == (WHOLE.id, WHOLE.model, 1)
        assert ("usage" in read) == counts_usage
        assert set(read["choices"][0]) >= {"index", "finish_reason", "logprobs"}  # type: ignore[index]


@pytest.mark.parametrize("chunks", [ChatChunks(WHOLE, counts_usage=True), TextChunks(WHOLE, counts_usage=True)])
def test_the_chunk_that_counts_has_no_choices(chunks: ChatChunks | TextChunks) -> None:
    read = _read(chunks.counts(count_usage(5, 3, 2, 1)))
    assert read["choices"] == []
    assert read["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
