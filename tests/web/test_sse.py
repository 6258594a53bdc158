"""The page's SSE parser, in the browser it runs in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Page

pytestmark = pytest.mark.e2e

PARSE = """(chunks) => {
  const parser = new modules["helpers/sse.js"].SseParser();
  return chunks.flatMap((chunk) => parser.feed(Uint8Array.from(chunk)));
}"""

values = st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), max_size=12)
names = st.text(st.sampled_from("abc客"), min_size=1, max_size=4)
newlines = st.sampled_from(["\n", "\r", "\r\n"])


def parse(page: Page, *chunks: bytes) -> list[tuple[str, str]]:
    return [(event["name"], event["data"]) for event in page.evaluate(PARSE, [list(chunk) for chunk in chunks])]


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, str]]]:
    """The bytes of a stream, and the events in it."""
    events = draw(st.lists(st.tuples(st.none() | names, st.lists(values, min_size=1, max_size=3)), max_size=5))
    text = draw(st.sampled_from(["", "\ufeff"]))
    for name, lines in events:
        newline = draw(newlines)
        fields = [f"data: {line}" if line.startswith(" ") or draw(st.booleans()) else f"data:{line}" for line in lines]
        fields += [f"event: {name}"] * (name is not None) + draw(
            st.lists(st.sampled_from([": keep-alive", "id: 7", "retry: 5", "nonsense"]))
        )
        text += newline.join([*draw(st.permutations(fields)), "", ""]) if len(lines) == 1 else newline.join([*fields, "", ""])
        text += draw(st.sampled_from(["", f": keep-alive{newline}{newline}"]))
    return text.encode(), [(name or "message", "\n".join(lines)) for name, lines in events]


@settings(max_examples=250, deadline=None)
@given(streams(), st.data())
def test_chunks_cut_at_any_byte_are_put_together_exactly(
    workbench: Page, stream: tuple[bytes, list[tuple[str, str]]], data: st.DataObject
) -> None:
    raw, events = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    chunks = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert parse(workbench, *chunks) == events


def test_one_byte_at_a_time(workbench: Page) -> None:
    raw = 'event: delta\r\ndata: {"text":"退货 🫖"}\r\n\r\n: keep-alive\r\n\r\ndata: é\r\r'.encode()
    assert parse(workbench, *(bytes([byte]) for byte in raw)) == [("delta", '{"text":"退货 🫖"}'), ("message", "é")]


def test_an_event_that_did_not_end_is_not_an_event(workbench: Page) -> None:
    assert parse(workbench, b"event: done\ndata: {}\n") == []


def test_an_event_without_data_leaves_nothing_behind(workbench: Page) -> None:
    assert parse(workbench, b"event: done\n\ndata: x\n\n") == [("message", "x")]
