"""Thought and answer never mix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.chat.detokenizer import Vocabulary
from server.chat.reasoning import PlainSplitter, Splitter, TextSplitter, ThinkTags, ThoughtState, TokenSplitter
from tests.server.fakes import ByteTokenizer

TAGS = ThinkTags(259, 260)


def _split(splitter: Splitter, token_ids: list[int]) -> list[tuple[str, str]]:
    pieces = [piece for token_id in token_ids for piece in splitter.push(token_id)]
    return [(channel, text) for channel, text in [*pieces, *splitter.flush()] if text]


def _joined(pieces: list[tuple[str, str]], channel: str) -> str:
    return "".join(text for name, text in pieces if name == channel)


def _splitters(state: ThoughtState) -> list[tuple[Splitter, ByteTokenizer]]:
    """The same text through single-token tags and through tags spelled in bytes."""
    single, spelled = ByteTokenizer(), ByteTokenizer(special_tags=False)
    return [(TokenSplitter(Vocabulary(single), TAGS, state), single), (TextSplitter(Vocabulary(spelled), state), spelled)]


@pytest.mark.parametrize(
    ("state", "said", "reasoning", "content"),
    [
        (ThoughtState.THINKING, "hm\n</think>\n\nYes.\n", "hm\n", "Yes.\n"),
        (ThoughtState.THINKING, "hm", "hm", ""),
        (ThoughtState.THINKING, "a<think>b</think>c", "ab", "c"),
        (ThoughtState.THINKING, "a</think>\nb</think>c<think>d</think>e", "a", "bcde"),
        (ThoughtState.UNDECIDED, " \n<think>hm</think>\n\nYes", "hm", "Yes"),
        (ThoughtState.UNDECIDED, "Yes <think>no</think>", "", "Yes no"),
        (ThoughtState.ANSWERING, "\n\nYes<think>", "", "Yes"),
        (ThoughtState.ANSWERING, "  indented", "", "  indented"),
    ],
)
def test_the_rule(state: ThoughtState, said: str, reasoning: str, content: str) -> None:
    for splitter, tokenizer in _splitters(state):
        pieces = _split(splitter, tokenizer.encode(said, special=True))
        assert (_joined(pieces, "reasoning"), _joined(pieces, "content")) == (reasoning, content)


@given(st.lists(st.sampled_from(["<think>", "</think>", "\n", "a", "é", "<", "</", "think>"]), max_size=25), st.sampled_from(ThoughtState))
def test_reasoning_comes_before_content_and_no_tag_is_ever_visible(parts: list[str], state: ThoughtState) -> None:
    for splitter, tokenizer in _splitters(state):
        pieces = _split(splitter, [i for part in parts for i in tokenizer.encode(part, special=True)])
        channels = [channel for channel, _ in pieces]
        assert channels == sorted(channels, reverse=True)
        assert not _joined(pieces, "content").startswith("\n")
        if isinstance(splitter, TextSplitter):
            assert all(tag not in text for _, text in pieces for tag in ("<think>", "</think>"))


@given(st.text("ab\n", max_size=20), st.text("ab", max_size=20))
def test_every_token_is_counted_once(thought: str, answer: str) -> None:
    tokenizer = ByteTokenizer()
    splitter = TokenSplitter(Vocabulary(tokenizer), TAGS, ThoughtState.UNDECIDED)
    said = tokenizer.encode(f"<think>{thought}</think>{answer}", special=True)
    _split(splitter, said)
    assert splitter.num_reasoning_tokens == len(thought) + 2 == len(said) - len(answer)


def test_text_without_thoughts_keeps_tags_and_newlines() -> None:
    tokenizer = ByteTokenizer()
    pieces = _split(PlainSplitter(Vocabulary(tokenizer)), tokenizer.encode("\n<think>x</think>", special=True))
    assert _joined(pieces, "content") == "\n<think>x</think>"
