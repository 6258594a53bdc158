"""The page's markdown: an allow-list to DOM nodes, safe with any text and at any moment of its growth."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Page

from tests.web.hostile import VECTORS

pytestmark = pytest.mark.e2e

CITE = """const cite = (number) => number < 10 ? Object.assign(document.createElement("button"), { textContent: number }) : null;"""
DRAW = f"""(steps) => {{
  {CITE}
  const {{ MarkdownView, growing }} = modules["helpers/markdown.js"];
  const box = document.createElement("div");
  document.body.append(box);
  const view = new MarkdownView(box, cite);
  steps.forEach((text, index) => view.draw(index < steps.length - 1 ? growing(text) : text));
  box.remove();
  return box.innerHTML;
}}"""
ALLOWED = {"p", "strong", "em", "code", "pre", "ul", "ol", "li", "br", "a", "span", "button"}


def draw(page: Page, *steps: str) -> str:
    return page.evaluate(DRAW, list(steps))


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
        ("**bold**, *italic* and _too_", "<p><strong>bold</strong>, <em>italic</em> and <em>too</em></p>"),
        ("**bold with *italic* in it**", "<p><strong>bold with <em>italic</em> in it</strong></p>"),
        ("请在**30 天**内退货", "<p>请在<strong>30 天</strong>内退货</p>"),
        ("2 * 3 * 4 and snake_case_name", "<p>2 * 3 * 4 and snake_case_name</p>"),
        ("say `a < b && *c*`", "<p>say <code>a &lt; b &amp;&amp; *c*</code></p>"),
        ("- tea\n- pots\n\n1. one\n2. two", '<ul><li>tea</li><li>pots</li></ul><ol start="1"><li>one</li><li>two</li></ol>'),
        ("3. three\n\n4. four", '<ol start="3"><li>three</li><li>four</li></ol>'),
        ("- tea\n  green", "<ul><li>tea<br>green</li></ul>"),
        ("## Returns\nWithin **30** days", "<p><strong>Returns</strong></p><p>Within <strong>30</strong> days</p>"),
        ("```py\nx = '<b>'\n\ny\n```\nafter", "<pre><code>x = '&lt;b&gt;'\n\ny</code></pre><p>after</p>"),
        (r"\*not italic\* and \[1\]", "<p>*not italic* and [1]</p>"),
        ("[orders](/orders?x=1)", '<p><a href="{origin}/orders?x=1" target="_blank" rel="noopener">orders</a></p>'),
        ("[shop](https://shop.example/a)", "<p>shop (https://shop.example/a)</p>"),
        ("[here](note) and [x](blob:{origin}/1)", "<p>here (note) and x (blob:{origin}/1)</p>"),
        ("![a kettle](https://shop.example/a.png)", "<p>a kettle</p>"),
        ("<https://shop.example>", "<p>&lt;https://shop.example&gt;</p>"),
        ("30 days [1], not [12] or [x]", '<p>30 day<span class="tied">s\u202f<button>1</button></span>, not [12] or [x]</p>'),
    ],
)
def test_what_it_draws(workbench: Page, url: str, text: str, html: str) -> None:
    assert draw(workbench, text.replace("{origin}", url)) == html.replace("{origin}", url)


@pytest.mark.parametrize("text", VECTORS)
def test_hostile_text_stays_text(workbench: Page, url: str, text: str) -> None:
    found = workbench.evaluate(
        f"""(text) => {{
          {CITE}
          const box = document.createElement("div");
          new modules["helpers/markdown.js"].MarkdownView(box, cite).draw(text);
          const nodes = [...box.querySelectorAll("*")];
          const names = [...new Set(nodes.flatMap((node) => node.getAttributeNames()))];
          const links = [...box.querySelectorAll("a")].map((link) => new URL(link.href).origin);
          return [nodes.map((node) => node.localName), names, links];
        }}""",
        text,
    )
    elements, attributes, origins = found
    assert set(elements) <= ALLOWED
    assert set(attributes) <= {"href", "target", "rel", "start", "class"}
    assert set(origins) <= {url}


marks = st.text(st.sampled_from("ab 1退[]()*_`#-.\n\\<>!/&"), max_size=60)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | marks, st.lists(st.integers(0, 60), max_size=6))
def test_drawing_while_it_grows_ends_as_drawing_it_once(workbench: Page, text: str, cuts: list[int]) -> None:
    assert draw(workbench, *(text[:cut] for cut in sorted(cuts)), text) == draw(workbench, text)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab 退1*_#-.\n>/&"), max_size=60))
def test_no_word_is_lost(workbench: Page, text: str) -> None:
    """Marks may go; every word is on the page, in order."""
    shown = re.sub(r"<[^>]*>", "", draw(workbench, text))
    position = 0
    for word in re.findall(r"[ab退]+", text):
        position = shown.find(word, position)
        assert position >= 0, shown
        position += len(word)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("See **the ord", "<p>See <strong>the ord</strong></p>"),
        ("See **the **", "<p>See <strong>the</strong></p>"),
        ("See *", "<p>See </p>"),
        ("See [1", "<p>See </p>"),
        ("**Done** and **", "<p><strong>Done</strong> and </p>"),
        ("One ** two\n\nthree", "<p>One ** two</p><p>three</p>"),
    ],
)
def test_a_mark_just_begun_does_not_flash(workbench: Page, text: str, html: str) -> None:
    drawn = workbench.evaluate(
        f"""(text) => {{
          {CITE}
          const box = document.createElement("div");
          const {{ MarkdownView, growing }} = modules["helpers/markdown.js"];
          new MarkdownView(box, cite).draw(growing(text));
          return box.innerHTML;
        }}""",
        text,
    )
    assert drawn == html


def test_unchanged_blocks_keep_their_nodes(workbench: Page) -> None:
    kept = workbench.evaluate(
        f"""() => {{
          {CITE}
          const box = document.createElement("div");
          const view = new modules["helpers/markdown.js"].MarkdownView(box, cite);
          view.draw("first [1]\\n\\nsec");
          const first = box.firstChild;
          view.draw("first [1]\\n\\nsecond\\n\\n- third");
          return box.firstChild === first && box.children.length === 3;
        }}"""
    )
    assert kept


@pytest.mark.parametrize("unit", ["*", "**a", "[", "[a](", "`", "_a", "![", "- ", "\\", "**a *b ", "[1]", "a\n"])
def test_a_very_long_hostile_text_does_not_freeze_the_page(workbench: Page, unit: str) -> None:
    """Linear work ends in a blink; quadratic work over so many marks would take minutes, and the call would time out."""
    drawn = workbench.evaluate(
        f"""(unit) => {{
          {CITE}
          const {{ blocks, inline }} = modules["helpers/markdown.js"];
          const started = performance.now();
          for (const block of blocks(unit.repeat(60_000))) for (const line of block.lines.slice(0, 100)) inline(line, cite);
          return performance.now() - started;
        }}""",
        unit,
    )
    assert drawn < 8_000
