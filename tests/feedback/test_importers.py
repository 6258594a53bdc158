"""Files of somebody else's making: read as they were meant, or refused in one sentence."""

import random
from pathlib import Path

import pytest

from feedback.importers import MAX_BYTES, ImportRefused, as_markdown, by_hand, read, read_file
from feedback.knowledge import Passage

MARKDOWN = """# Teapots

We sell **clay** pots, see [the list](https://example.org/list). <b>All</b> are new.

## Care
- Rinse with water.
- No soap!

```
# not a heading
```
"""
PAGE = """<html><head><title>Gifts</title><script>alert("no")</script><style>p {}</style></head><body><nav>Home</nav>
<p>We like gifts.<h2>Wrapping &amp; cards</h2><p>We wrap <b>every</b> gift<br>for free.</p><div onclick="x()">Ask us.</div>
<svg><text>x</text></svg>"""


def pdf(text: str) -> bytes:
    """A page that says `text`, with the cross-reference table that a reader wants."""
    stream = f"BT /F1 12 Tf 20 700 Td ({text}) Tj ET".encode("latin-1")
    page = b"<< /Type /Page /Parent 2 0 R /Contents 5 0 R /Resources << /Font << /F1 4 0 R >> >> /MediaBox [0 0 612 792] >>"
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        page,
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
    )
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return data + b"xref\n0 6\n0000000000 65535 f \n" + table + b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(data)


def test_a_heading_begins_a_passage() -> None:
    [draft] = read("pots.md", MARKDOWN.encode())
    assert (draft.title, draft.language) == ("Teapots", "en")
    assert [(piece.title, piece.text) for piece in draft.pieces] == [
        ("Teapots", "We sell clay pots, see the list. All are new."),
        ("Care", "Rinse with water. No soap! # not a heading"),
    ]


def test_a_page_is_what_a_reader_sees() -> None:
    [draft] = read("gifts.html", PAGE.encode())
    assert draft.title == "Gifts"
    assert [(piece.title, piece.text) for piece in draft.pieces] == [
        ("Gifts", "We like gifts."),
        ("Wrapping & cards", "We wrap every gift for free. Ask us."),
    ]


def test_questions_with_one_answer_are_one_article() -> None:
    rows = "Question,Answer\nHow long may I return it?,Thirty days.\nCan I send it back?,Thirty days.\n,\n退货要多久？,三十天。\n"
    returns, chinese = read("faq.csv", rows.encode("utf-8-sig"))
    assert returns.pieces[0].questions == ("How long may I return it?", "Can I send it back?")
    assert (returns.title, returns.pieces[0].text) == ("How long may I return it?", "Thirty days.")
    assert (chinese.language, chinese.pieces[0].text) == ("zh", "三十天。")
    assert read("faq.csv", "问题;答案\n多久？;三天。".encode("gb18030"))[0].pieces[0].text == "三天。"
    assert read("plain.csv", b"a?,yes\nb?,no")[1].title == "b?"


def test_a_formula_is_only_text() -> None:
    drafts = read("faq.csv", b"question,answer\n=cmd|' /C calc'!A0,@SUM(1)\nminus,-5 degrees\n")
    assert [(draft.title, draft.pieces[0].text) for draft in drafts] == [("cmd|' /C calc'!A0", "SUM(1)"), ("minus", "-5 degrees")]


def test_a_pdf_is_read() -> None:
    pytest.importorskip("pypdf")
    [draft] = read("warranty.pdf", pdf("Kettles have a warranty of 24 months."))
    assert (draft.title, draft.pieces[0].text) == ("warranty", "Kettles have a warranty of 24 months.")


def test_what_hides_from_a_reader_does_not_reach_the_model() -> None:
    [draft] = read("trick.md", ("Thirty\u202e days\u200b.\x07" + " Yes and no." * 90).encode())
    assert draft.pieces[0].text.startswith("Thirty days. Yes and no.")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("noise.md", random.Random(0).randbytes(5000)),
        ("nul.md", b"text\0text"),
        ("empty.md", b"\n \n"),
        ("script.html", b"<script>only code</script>"),
        ("three.csv", b"a,b,c\nd,e,f"),
        ("cell.csv", b"question,answer\nq," + b"x" * 30_000),
        ("question.csv", b"question,answer\n" + b"q" * 2_000 + b",a"),
        ("rows.csv", b"question,answer\n" + b"q,a\n" * 60_000),
        ("long.txt", b"word " * 500_000),
        ("big.txt", b" " * (MAX_BYTES + 1)),
        ("cut.pdf", pdf("Hello.")[:120]),
        ("noise.pdf", random.Random(1).randbytes(5000)),
        ("bomb.pdf", b"%PDF-1.4\n" + b"<<" * 50_000),
    ],
)
def test_what_cannot_be_taken_is_refused_by_name(name: str, data: bytes) -> None:
    with pytest.raises(ImportRefused, match=name) as refused:
        read(name, data)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


def test_a_deeply_nested_page_is_read_all_the_same() -> None:
    [draft] = read("deep.html", b"<div>" * 100_000 + b"Here." + b"</div>" * 100_000)
    assert draft.pieces[0].text == "Here."


def test_files_that_are_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match=r"gone\.md cannot be read"):
        read_file(tmp_path / "gone.md")
    with pytest.raises(ImportRefused, match=r"a\.exe is none of the kinds"):
        read_file(tmp_path / "a.exe")


def test_what_was_typed_by_hand_comes_back_to_be_typed_on() -> None:
    text = "Unopened goods only. Thirty days.\n\n## Refunds\n\nWithin 5 working days.\n\n## Returns\n\nAgain."
    first = by_hand("Returns", text, ["how long", " how long ", "", "send it back"])
    assert [(piece.title, piece.text) for piece in first.pieces] == [
        ("Returns", "Unopened goods only. Thirty days."),
        ("Refunds", "Within 5 working days."),
        ("Returns", "Again."),
    ]
    assert first.pieces[0].questions == ("how long", "send it back") and not first.pieces[1].questions
    passages = [Passage("p", each.title, each.text, each.questions, "en", "v") for each in first.pieces]
    again = by_hand("Returns", as_markdown("Returns", passages), first.pieces[0].questions)
    assert again == first
    with pytest.raises(ImportRefused, match="no text"):
        by_hand("Returns", "\n\n", [])
    with pytest.raises(ImportRefused, match="none of the kinds"):
        read("a.exe", b"x")
