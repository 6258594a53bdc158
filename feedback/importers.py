"""Importers: a file of somebody else's making becomes articles, or is refused with one sentence."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path

from feedback.grams import HAN
from feedback.knowledge import Draft, Passage, Piece
from feedback.sentences import pack

MAX_BYTES = 20_000_000
MAX_CHARS = 2_000_000
MAX_ROWS = 50_000
MAX_PAGES = 2_000
MAX_CELL_CHARS = 20_000
MAX_QUESTION_CHARS = 1_000
MAX_TITLE_CHARS = 200
SKIPPED = frozenset({"script", "style", "noscript", "template", "svg", "nav", "footer", "iframe", "object", "form", "select", "button"})
BREAKING = frozenset({"p", "div", "li", "br", "tr", "td", "th", "section", "article", "ul", "ol", "table", "dt", "dd", "pre", "blockquote"})
HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
QUESTION_NAMES = ("question", "questions", "q", "text", "query", "ask", "问题", "问", "提问")
ANSWER_NAMES = ("answer", "answers", "a", "category", "reply", "intent", "label", "答案", "回答", "答")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\ufffe|\uffff")
# Bidirectional overrides show a reader other words than the model reads.
INVISIBLE = re.compile(r"[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")

Section = tuple[str, str]


class ImportRefused(Exception):
    """The file cannot be taken; the message is one sentence that names it."""


def read_file(path: Path) -> list[Draft]:
    """The articles of one file, by its ending. Raises ImportRefused."""
    _reader(path.name)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ImportRefused(f"{path.name} is larger than {MAX_BYTES // 1_000_000} MB")
        return read(path.name, path.read_bytes())
    except OSError as error:
        raise ImportRefused(f"{path.name} cannot be read: {error.strerror}") from error


def read(name: str, data: bytes) -> list[Draft]:
    """The articles in `data`; the ending of `name` says what it is. Raises ImportRefused."""
    if len(data) > MAX_BYTES:
        raise ImportRefused(f"{name} is larger than {MAX_BYTES // 1_000_000} MB")
    drafts = _reader(name)(name, data)
    if not any(draft.pieces for draft in drafts):
        raise ImportRefused(f"{name} holds no text")
    return drafts


def _reader(name: str) -> Callable[[str, bytes], list[Draft]]:
    if Path(name).suffix.lower() not in READERS:
        raise ImportRefused(f"{name} is none of the kinds that can be imported: {', '.join(sorted(READERS))}")
    return READERS[Path(name).suffix.lower()]


def by_hand(title: str, text: str, questions: Iterable[str]) -> Draft:
    """An article as somebody types it, in Markdown. As in a CSV, its first passage answers the questions. Raises ImportRefused."""
    title = _clean(title).strip()
    [draft] = read("article.md", f"# {title}\n\n{text}".encode())
    asked = tuple(dict.fromkeys(_clean(each).strip()[:MAX_QUESTION_CHARS] for each in questions if each.strip()))
    language = _language(" ".join((*(piece.text for piece in draft.pieces), *asked)))
    return Draft(title, language, (replace(draft.pieces[0], questions=asked), *draft.pieces[1:]))


def as_markdown(title: str, passages: Iterable[Passage]) -> str:
    """The text that `by_hand` reads as these passages of an article, but for where one ends and the next begins."""
    groups = ((about, "\n".join(each.text for each in group)) for about, group in groupby(passages, lambda each: each.title))
    parts = [text if about == title and not number else f"## {about}\n\n{text}" for number, (about, text) in enumerate(groups)]
    return "\n\n".join(parts)


def _markdown(name: str, data: bytes) -> list[Draft]:
    sections: list[Section] = []
    title, lines, fence = "", list[str](), ""
    for line in _text(name, data).splitlines():
        mark = re.match(r" {0,3}(```|~~~)", line)
        if mark:
            fence = "" if fence == mark[1] else fence or mark[1]
        elif not fence and (heading := re.match(r" {0,3}#{1,6}\s+(.+?)\s*#*\s*$", line)):
            sections.append((title, "\n".join(lines)))
            title, lines = _plain(heading[1]), []
        else:
            lines.append(_plain(line))
    return _article(name, [*sections, (title, "\n".join(lines))])


def _plain(line: str) -> str:
    """Markdown without its marks. What a link or an image points at is not knowledge."""
    line = re.sub(r"!?\[([^\]\n]{0,500})\]\([^()\s]{0,2000}\)", r"\1", line)
    line = re.sub(r"^\s*(?:[-*+>]|\d{1,3}[.)])\s+|^\s*[-=|: ]{3,}$", "", line)
    return re.sub(r"\*\*|__|`|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)|<[^<>\n]{1,300}>", "", line)


class _Page(HTMLParser):
    """Sections of a page's visible text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: list[Section] = []
        self.title = ""
        self._heading: list[str] | None = None
        self._said: list[str] = []
        self._about = ""
        self._skipping = ""
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if self._skipping:
            self._depth += tag == self._skipping
        elif tag in SKIPPED:
            self._skipping, self._depth = tag, 1
        elif tag in HEADINGS or tag == "title":
            self._heading = []
        elif tag in BREAKING:
            self._said.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            self._depth -= tag == self._skipping
            self._skipping = self._skipping if self._depth else ""
        elif (tag in HEADINGS or tag == "title") and self._heading is not None:
            heading, self._heading = " ".join("".join(self._heading).split()), None
            if tag == "title":
                self.title = heading
            else:
                self.end_section()
                self._about = heading
        elif tag in BREAKING:
            self._said.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            (self._said if self._heading is None else self._heading).append(data if data.strip() else " ")

    def end_section(self) -> None:
        lines = (" ".join(line.split()) for line in "".join(self._said).split("\n"))
        self.sections.append((self._about, "\n".join(line for line in lines if line)))
        self._said = []


def _html(name: str, data: bytes) -> list[Draft]:
    page = _Page()
    page.feed(_text(name, data))
    page.close()
    page.end_section()
    return _article(name, page.sections, page.title)


def _pdf(name: str, data: bytes) -> list[Draft]:
    try:
        import pypdf
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise ImportRefused(f"{name} needs pypdf: pip install pypdf") from error
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ImportRefused(f"{name} is locked with a password")
        if len(reader.pages) > MAX_PAGES:
            raise ImportRefused(f"{name} has more than {MAX_PAGES} pages")
        pages, num_chars = list[str](), 0
        for page in reader.pages:
            pages.append(_lines_joined(page.extract_text()))
            num_chars += len(pages[-1])
            if num_chars > MAX_CHARS:
                raise ImportRefused(f"{name} holds more than {MAX_CHARS:,} characters")
    # A hostile file makes pypdf raise nearly anything of these.
    except (
        PyPdfError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RecursionError,
        OverflowError,
        AssertionError,
    ) as error:
        raise ImportRefused(f"{name} is no PDF that can be read") from error
    return _article(name, [("", _clean("\n".join(pages)))])


def _lines_joined(text: str) -> str:
    """A PDF's lines end where the paper did, not where a sentence does."""
    return re.sub(r"(?<![.!?。！？；:：\n])\n(?=\S)", lambda m: "" if HAN.match(text[m.start() - 1 : m.start()]) else " ", text)


def _csv(name: str, data: bytes) -> list[Draft]:
    rows = list(_rows(name, _text(name, data)))
    if not rows:
        return []
    head = [cell.strip().lower() for cell in rows[0]]
    asks = next((head.index(known) for known in QUESTION_NAMES if known in head), None)
    tells = next((head.index(known) for known in ANSWER_NAMES if known in head), None)
    if asks is None or tells is None:
        if any(len(row) != 2 for row in rows):
            raise ImportRefused(f"{name} needs a question and an answer column, named so in its first line")
        asks, tells = 0, 1
    else:
        rows = rows[1:]
    questions: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if max(asks, tells) < len(row) and (asked := _cell(row[asks])) and (told := _cell(row[tells])):
            if len(asked) > MAX_QUESTION_CHARS:
                raise ImportRefused(f"{name} has a question of more than {MAX_QUESTION_CHARS:,} characters")
            questions[told].append(asked)
    return [_answer(told, tuple(dict.fromkeys(asked))) for told, asked in questions.items()]


def _rows(name: str, text: str) -> Iterator[list[str]]:
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    csv.field_size_limit(MAX_CELL_CHARS)
    try:
        for number, row in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter), 1):
            if number > MAX_ROWS:
                raise ImportRefused(f"{name} has more than {MAX_ROWS:,} lines")
            if any(cell.strip() for cell in row):
                yield row
    except csv.Error as error:
        raise ImportRefused(f"{name} is no CSV that can be read, or has a cell of more than {MAX_CELL_CHARS:,} characters") from error


def _cell(cell: str) -> str:
    """A cell that a spreadsheet would compute is only text: the mark in front goes."""
    return re.sub(r"^[=+@\t\r]+|^-(?=[^\d\s])", "", cell.strip()).strip()


def _answer(told: str, asked: tuple[str, ...]) -> Draft:
    parts = pack(told)
    pieces = (Piece(asked[0][:MAX_TITLE_CHARS], parts[0], asked), *(Piece(asked[0][:MAX_TITLE_CHARS], part) for part in parts[1:]))
    return Draft(asked[0][:MAX_TITLE_CHARS], _language(" ".join((told, *asked))), pieces)


def _article(name: str, sections: list[Section], title: str = "") -> list[Draft]:
    title = (title or next((about for about, _ in sections if about), "") or Path(name).stem)[:MAX_TITLE_CHARS]
    pieces = tuple(Piece((about or title)[:MAX_TITLE_CHARS], part) for about, text in sections for part in pack(text))
    return [Draft(title, _language(" ".join(piece.text for piece in pieces)), pieces)]


def _language(text: str) -> str:
    """As server.language decides it, over a whole article."""
    num_han = len(HAN.findall(text))
    return "zh" if num_han and num_han >= len(re.findall(r"[A-Za-z]{2,}", text)) else "en"


def _text(name: str, data: bytes) -> str:
    if b"\0" in data[:4096] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ImportRefused(f"{name} is not text")
    for encoding in ("utf-16",) if data.startswith((b"\xff\xfe", b"\xfe\xff")) else ("utf-8-sig", "gb18030"):
        try:
            text = data.decode(encoding)
        except UnicodeError:
            continue
        if len(text) > MAX_CHARS:
            raise ImportRefused(f"{name} holds more than {MAX_CHARS:,} characters")
        if len(CONTROL.findall(text)) > len(text) / 1000:
            raise ImportRefused(f"{name} is not text")
        return _clean(text)
    raise ImportRefused(f"{name} is neither UTF-8 nor GB 18030 text")


def _clean(text: str) -> str:
    return CONTROL.sub(" ", INVISIBLE.sub("", text.replace("\r\n", "\n")))


READERS: dict[str, Callable[[str, bytes], list[Draft]]] = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".txt": _markdown,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".csv": _csv,
}
