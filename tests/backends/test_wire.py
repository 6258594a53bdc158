"""Messages survive the socket, whatever the chunk edges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.sequence import CacheScope, FinishReason, Priority, SamplingParams, Thinking
from backends.wire import MAX_MESSAGE_BYTES, Submit, TokenEvent, Tokens, Unframer, WireError, encode, to_engine_decoder, to_web_decoder


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=20), min_size=1, max_size=5), st.data())
def test_any_cut_of_the_stream_gives_the_same_messages(prompts: list[list[int]], data: st.DataObject) -> None:
    messages = [Submit(i, prompt, SamplingParams(logit_bias={5: -1.5}), CacheScope()) for i, prompt in enumerate(prompts)]
    stream = b"".join(map(encode, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    unframer, got = Unframer(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += [to_engine_decoder.decode(payload) for payload in unframer.feed(stream[start:stop])]
    assert got == messages


def test_every_field_of_a_request_arrives() -> None:
    thinking = Thinking(open_id=3, close_id=4, close_ids=(9, 4, 9), starts_open=True, budget=7)
    sent = Submit(1, [1, 2], SamplingParams(seed=2**63 - 1, top_k=3), CacheScope(1, "a", "b"), thinking, Priority.IDLE, reuse_output=False)
    (payload,) = Unframer().feed(encode(sent))
    assert to_engine_decoder.decode(payload) == sent


def test_token_events_arrive_with_their_logprobs() -> None:
    events = [TokenEvent(1, num_cached=5), TokenEvent(1, 17, -0.25, ((17, -0.25), (3, -2.0)), FinishReason.STOP)]
    (payload,) = Unframer().feed(encode(Tokens(events)))
    assert to_web_decoder.decode(payload) == Tokens(events)


def test_an_oversized_frame_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError):
        list(Unframer().feed((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big")))
