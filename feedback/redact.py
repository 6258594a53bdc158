"""Redaction: phones, e-mails, Chinese identity numbers and bank cards become typed placeholders, the same one for the same value.

Names and addresses in free text are not found.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from itertools import accumulate
from typing import Literal

Kind = Literal["PHONE", "EMAIL", "CN_ID", "CARD", "ORDER"]
VERSION = "1"

# Whatever stands between the digits of one number.
_GAP = r"[ \t\-‐‑–—−.·()_]"
_RUN = re.compile(rf"\d++(?:{_GAP}{{1,3}}+\d++)*+(?:[Xx](?![A-Za-z\d])|(?<=\d{{17}})[Xx])?")
_GROUP = re.compile(r"\d+[Xx]?")
_HAN_DIGITS = re.compile(r"[零〇一二三四五六七八九幺](?:[ \-]?[零〇一二三四五六七八九幺]){6,}")
_HAN_VALUES = str.maketrans("零〇一二三四五六七八九幺", "001234567891")
_LOCAL = r"[A-Za-z0-9._%+\-]"
_LABEL = r"[A-Za-z0-9\-]++"
_TOP = r"(?:com|cn|net|org|edu|gov|io|me|hk|tw|uk|de|jp)\b"
_EMAIL = re.compile(
    rf"(?<!{_LOCAL}){_LOCAL}++(?: ?@ ?{_LABEL}(?:\.{_LABEL}| ?\. ?(?={_TOP}){_LABEL})++"
    rf"| ?[\[(] ?at ?[\])] ?{_LABEL}(?:(?:\.| ?[\[(] ?dot ?[\])] ?){_LABEL})++| at {_LABEL}(?: dot {_LABEL})++)",
    re.IGNORECASE,
)
_CUES = re.compile(
    r"(?P<PHONE>手机|电话|联系|号码|致电|拨打|打给|座机|热线|短信|phone|mobile|\btel\b|\bcell|\bcall|\btext|whatsapp|\bfax|contact|reach)"
    r"|(?P<CARD>银行卡|信用卡|借记卡|储蓄卡|卡号|尾号|账号|card|\biban|account)"
    r"|(?P<CN_ID>身份证|证件|\bid\b(?! ?(?:of )?(?:order|parcel))|identity)"
    r"|(?P<ORDER>订单|单号|运单|快递|物流|编号|流水|order|tracking|parcel|invoice|ticket|reference|\bref\b|receipt|serial|sku|imei)",
    re.IGNORECASE,
)
_ORDER_BEFORE = re.compile(
    r"(?:订单|运单|快递|物流|流水|退货|售后|工单|发票)?(?:单号|编号|流水号|序列号|订单号|物流号)(?:是|为|叫)?[\s:：#\"“(]*$"
    r"|(?:order|tracking|parcel|invoice|ticket|reference|ref|receipt|serial|sku|imei)(?:'?s)?\s?(?:number|num|no|id|code)?\.?"
    r"(?: is| was)?[\s:#\"(]*$|#\s?$",
    re.IGNORECASE,
)
_PREFIX = re.compile(r"([A-Za-z]{1,20})[\-_]?$")
_CUE_WORDS = re.compile(
    r"(?:tel|phone|mob|mobile|cell|call|text|whatsapp|wechat|vx|wx|fax|card|id|no|is|at|on|me|my|and|or|to)$", re.IGNORECASE
)
_CODE_AFTER = re.compile(r"[A-Za-z]+\d|[A-Z]{1,4}(?![A-Za-z])")
_CLAUSE_END = re.compile(r"[。！？!?；;\n]")
CUE_CHARS = 24
_WORDS = re.compile(r"[^\W\d_]|#")
MAX_DIGITS = 22

_MOBILE = re.compile(r"(?:(?:00)?86)?0?1[3-9]\d{9}")
_LANDLINE = re.compile(r"0(?:10|2\d|[3-9]\d\d)[2-9]\d{6,7}")
_SERVICE = re.compile(r"[48]00\d{7}")
_NORTH_AMERICAN = re.compile(r"1?[2-9]\d\d[2-9]\d{6}")
_PROVINCES = re.compile("1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[12]|91")
MAX_PASSES = 8
# Issuer ranges (ISO/IEC 7812): UnionPay 62, Visa 4, Mastercard 51-55 and 2221-2720, Amex 34 and 37, JCB 35, Diners 30, 36, 38, Discover.
_BRANDS = re.compile(
    r"62\d{14,17}|4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|35\d{14}|3[068]\d{12}"
    r"|6(?:011|5\d\d)\d{12}"
)


@dataclass(frozen=True, slots=True)
class Found:
    """Something personal at `[start, end)` of the text as it was given; `value` is its one spelling: digits, or lower-case letters."""

    kind: Kind
    start: int
    end: int
    value: str


@dataclass(slots=True)
class Redactor:
    """One conversation's: the same number is the same placeholder in all its texts.

    `orders` are the shop's order numbers; they become [ORDER_n] and are taken for nothing else. `public` are values that stay, such as
    the shop's own telephone. Never raises; the time grows with the text's length.
    """

    orders: Sequence[re.Pattern[str]] = ()
    public: Collection[str] = ()
    counts: dict[Kind, int] = field(default_factory=dict)  # how many different values of each kind
    _names: dict[tuple[Kind, str], str] = field(default_factory=dict)

    def redact(self, text: str) -> str:
        found = self.find(text)
        # What stood before a number that is gone now may be read as one of its own.
        for _ in range(MAX_PASSES):
            if not found:
                break
            text = self._without(text, found)
            found = [one for one in find(text) if one.value not in self.public]
        return text

    def _without(self, text: str, found: Sequence[Found]) -> str:
        parts, place = [], 0
        for one in found:
            parts += [text[place : one.start], self._name(one)]
            place = one.end
        return "".join([*parts, text[place:]])

    def find(self, text: str) -> list[Found]:
        """What `redact` replaces, in order, without overlaps."""
        return [one for one in find(text, self.orders) if one.value not in self.public]

    def _name(self, one: Found) -> str:
        key = (one.kind, one.value)
        if key not in self._names:
            self.counts[one.kind] = self.counts.get(one.kind, 0) + 1
            self._names[key] = f"[{one.kind}_{self.counts[one.kind]}]"
        return self._names[key]


def find(text: str, orders: Sequence[re.Pattern[str]] = ()) -> list[Found]:
    """Everything personal in a text, in order, without overlaps."""
    view, offsets = _view(text)
    places = [*offsets, len(text)]  # what is invisible after a character goes with it
    taken: list[Found] = []
    for pattern in orders:
        _add(taken, [Found("ORDER", *hit.span(), hit.group()) for hit in pattern.finditer(view) if hit.group()])
    _add(taken, [Found("EMAIL", *hit.span(), _address(hit.group())) for hit in _EMAIL.finditer(view)])
    _add(taken, [one for run in _RUN.finditer(view) for one in _numbers(view, run)])
    ends = {one: max(places[one.end], places[one.end - 1] + 1) for one in taken}
    return [Found(one.kind, places[one.start], ends[one], one.value) for one in sorted(taken, key=lambda each: each.start)]


def is_luhn(digits: str) -> bool:
    """The check of card numbers (ISO/IEC 7812-1, annex B)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return digits.isdecimal() and (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def is_cn_id(value: str) -> bool:
    """An identity number of GB 11643: province, day of birth, and ISO 7064 MOD 11-2."""
    if not re.fullmatch(r"[1-9]\d{16}[\dX]", value, re.ASCII) or not _PROVINCES.match(value):
        return False
    try:
        born = date(int(value[6:10]), int(value[10:12]), int(value[12:14]))
    except ValueError:
        return False
    return (
        1850 <= born.year <= 2100
        and "10X98765432"[sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(value[:17])) % 11] == value[17]
    )


def _add(taken: list[Found], found: Sequence[Found]) -> None:
    """Both lists are short beside the text; `taken` holds what outranks `found`."""
    blocked = {place for one in taken for place in range(one.start, one.end)}
    taken += [one for one in found if blocked.isdisjoint(range(one.start, one.end))]


def _view(text: str) -> tuple[str, Sequence[int]]:
    """The text with every digit an ASCII digit and nothing invisible, and where in `text` each of its characters comes from."""
    if text.isascii():
        return text, range(len(text))
    folded = [_fold(char) for char in text]
    offsets = [place for place, piece in enumerate(folded) for _ in piece]
    return _HAN_DIGITS.sub(lambda hit: hit.group().translate(_HAN_VALUES), "".join(folded)), offsets


@lru_cache(maxsize=4096)
def _fold(char: str) -> str:
    if unicodedata.category(char) == "Cf" or char in "\ufe0f\u20e3":
        return ""
    return "".join(str(unicodedata.decimal(each, each)) for each in unicodedata.normalize("NFKC", char))


def _address(spelled: str) -> str:
    words = re.sub(r"\s?[\[(]?\s?\bat\b\s?[\])]?\s?", "@", spelled, flags=re.IGNORECASE) if "@" not in spelled else spelled
    return re.sub(r"\s|[\[\]()]", "", re.sub(r"\bdot\b", ".", words, flags=re.IGNORECASE)).lower()


def _numbers(view: str, run: re.Match[str]) -> Iterator[Found]:
    """The numbers in a run of digit groups: at each group the longest that means something."""
    groups = [(run.start() + hit.start(), hit.group().upper()) for hit in _GROUP.finditer(run.group())]
    if sum(len(digits) for _, digits in groups) < 7:
        return
    place = 0
    while place < len(groups):
        step, start = 1, groups[place][0]
        before = _before(view, start)
        for joined in _joined(groups[place : place + MAX_DIGITS]):
            end = groups[place + len(joined) - 1][0] + len(joined[-1])
            if kind := _kind(joined, before, view[end : end + 8]):
                step = len(joined)
                yield Found(kind, *_widened(view, start, end), _value(kind, "".join(joined)))
                break
        place += step


def _joined(groups: Sequence[tuple[int, str]]) -> list[list[str]]:
    """The first groups together, as many as make a number, the longest first."""
    lengths = accumulate(len(digits) for _, digits in groups)
    counts = [count for count, length in enumerate(lengths, 1) if 7 <= length <= MAX_DIGITS]
    return [[digits for _, digits in groups[:count]] for count in reversed(counts)]


def _widened(view: str, start: int, end: int) -> tuple[int, int]:
    if view[start - 1 : start] == "(" and ")" in view[start:end]:
        start -= 1
    return (start - 1 if view[start - 1 : start] == "+" else start), end


def _value(kind: Kind, digits: str) -> str:
    return digits[-11:] if kind == "PHONE" and _MOBILE.fullmatch(digits) else digits


@dataclass(frozen=True, slots=True)
class _Before:
    """What stands before a number in its clause: the nearest word that tells what it is, and whether it is certainly an order or a code."""

    cue: str | None
    is_order: bool
    is_code: bool
    has_plus: bool


def _before(view: str, start: int) -> _Before:
    words = _CLAUSE_END.split(view[max(0, start - CUE_CHARS) : start])[-1]
    has_plus = words.endswith(("+", "+("))
    if not _WORDS.search(words):
        return _Before(None, False, False, has_plus)
    cues = [hit.lastgroup for hit in _CUES.finditer(words)]
    prefix = _PREFIX.search(words)
    # Letters that belong to the number make it a code: KF-13800138000.
    is_code = prefix is not None and not _CUE_WORDS.search(prefix.group(1)) and prefix.group(1)[0].isupper() and prefix.group(1) != "X"
    return _Before(cues[-1] if cues else None, _ORDER_BEFORE.search(words) is not None, is_code, has_plus)


def _kind(groups: list[str], before: _Before, after: str) -> Kind | None:
    value = "".join(groups)
    if len(value) == 18 and is_cn_id(value):
        return "CN_ID"
    if before.cue == "CN_ID" and len(value) in (15, 18):
        return "CN_ID"
    if "X" in value or before.is_code or _CODE_AFTER.match(after):
        return None
    if before.cue == "CARD" and 12 <= len(value) <= 19:
        return "CARD"
    if before.is_order:
        return None
    if before.cue != "ORDER" and _BRANDS.fullmatch(value) and is_luhn(value):
        return "CARD"
    return "PHONE" if _is_phone(value, groups, before) else None


def _is_phone(value: str, groups: list[str], before: _Before) -> bool:
    if before.has_plus:
        return 8 <= len(value) <= 15
    if _MOBILE.fullmatch(value):
        return True
    if before.cue == "ORDER":
        return False
    if before.cue == "PHONE" and 7 <= len(value) <= 15:
        return True
    if _LANDLINE.fullmatch(value):
        return True
    if value.startswith("00") and len(groups) > 1:
        return 10 <= len(value) <= 15
    is_grouped = [len(group) for group in groups] in ([3, 3, 4], [1, 3, 3, 4], [3, 4, 3])
    return is_grouped and bool(_SERVICE.fullmatch(value) or _NORTH_AMERICAN.fullmatch(value))
