"""Numbers, dates, times, prices and addresses of English and Chinese text, each in one form, so that two texts can be compared."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Literal

Kind = Literal["number", "price", "percentage", "date", "time", "code", "email", "phone", "url"]

# Full-width forms of ASCII (U+FF01 to U+FF5E) become ASCII one for one, so places stay; the comma, the stop of a clause, does not.
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in "，；！？（）"} | {0xFFE5: ord("¥"), 0x2019: ord("'")}


def _numbered(words: str, start: int = 0, step: int = 1) -> dict[str, int]:
    return {word: start + step * number for number, word in enumerate(re.findall(r"[a-z]+|[^a-z\s]", words))}


_EN = _numbered(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS = _numbered("twenty thirty forty fifty sixty seventy eighty ninety", 20, 10)
_ZH = _numbered("零一二三四五六七八九") | {"两": 2, "〇": 0}
_ZH_POWERS = {"十": 10, "百": 100, "千": 1000}
_MONTHS = _numbered("jan feb mar apr may jun jul aug sep oct nov dec", 1)
_DAYS = _numbered("mon tue wed thu fri sat sun")
_ZH_DAYS = _numbered("一二三四五六日") | {"天": 6}

# unit -> (dimension, how many of the dimension's own unit it is); the order matters where one spelling begins another
_UNITS: tuple[tuple[str, str, str], ...] = (
    ("workdays", "1", r"(?:working|business|week)[-\s]?days?|(?:个\s*)?工作日"),
    ("hours", "1", r"hours?|hrs?(?![a-z])|h(?![a-z])|个?小时|个?钟头"),
    ("hours", "0.01666666666666666666666666667", r"minutes?|mins?(?![a-z])|分钟"),
    ("hours", "24", r"(?:calendar |natural )?days?|个?自然日|天|日(?!元)"),
    ("hours", "168", r"weeks?|个?星期|个?礼拜|周(?![一二三四五六日天末年])"),
    ("months", "1", r"months?|个月"),
    ("months", "12", r"years?|yrs?(?![a-z])|年"),
    ("percent", "1", r"%|per ?cent|个百分点"),
    ("usd", "1", r"(?:us )?dollars?|usd|bucks?(?![a-z])|美元|美金|刀(?!具)"),
    ("usd", "0.01", r"cents?(?![a-z])|美分"),
    ("cny", "1", r"yuan|rmb|cny|元|块钱?|人民币"),
    ("eur", "1", r"euros?|eur|€|欧元"),
    ("gbp", "1", r"pounds? sterling|gbp|£|英镑"),
    ("off", "1", r"折(?!叠|扣)"),
)
_MONEY = {"$": "usd", "us$": "usd", "¥": "cny", "rmb": "cny", "€": "eur", "£": "gbp"} | {
    name: name for name in ("usd", "cny", "eur", "gbp")
}
_UNIT = "|".join(f"(?P<u{number}>{spelling})" for number, (_, _, spelling) in enumerate(_UNITS))
_FIGURE = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?"
_ONES = "|".join(sorted((word for word in _EN if word != "zero"), key=len, reverse=True))
_WORD = rf"(?:(?:{'|'.join(_TENS)})(?:[-\s](?:{_ONES}))?|(?:{_ONES})(?: hundred(?: and)?(?: (?:{'|'.join(_TENS)}))?)?)(?![a-z])"
_HAN = r"[零〇一二两三四五六七八九十百千]{1,12}"
_NUMBER = rf"(?:{_FIGURE}|(?<![a-z]){_WORD}|{_HAN})"
_BEFORE = r"(?P<cur{0}>us\$|\$|¥|€|£|(?<![a-z])(?:usd|rmb|cny|eur|gbp)\s?)?\s?"
_QUANTITY = re.compile(
    rf"{_BEFORE.format(1)}(?P<a>{_NUMBER})(?P<wan>\s*万)?"
    rf"(?:\s*(?:-|–|—|~|to|or|至|到|或)\s*{_BEFORE.format(2)}(?P<b>{_NUMBER}))?"
    rf"(?:[\s-]*(?:full |whole |more |additional |extra )?(?:{_UNIT}))?",
    re.IGNORECASE,
)
_PART = re.compile(
    rf"百分之(?P<hundredth>{_FIGURE}|{_HAN})"
    rf"|(?:\b(?:within|in|under|after|up to) an? |(?P<half>\b(?:within |in )?half an? |半\s*个?))(?:{_UNIT})(?![a-z])",
    re.IGNORECASE,
)

_NOTHING = re.compile(
    r" *\[\d{1,2}\]"  # citations
    r"|(?m:^\s*(?:[-*]\s+)?\d{1,2}[.)、](?=\s|\D))|(?<=[:;；]\s)\d{1,2}[.)](?=\s)|[(（]\d{1,2}[)）]"  # marks of lists
    r"|\b(?:step|option)s? \d{1,2}\b|(?:步骤|方案|选项)\s*\d{1,2}|第\s*(?:\d+|[一二两三四五六七八九十]+)\s*(?:步|点|项|种|个|次)?",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
_URL = re.compile(
    r"(?:https?://|www\.)[^\s<>()\[\]\"'，。；、！？）】》”]+"
    r"|(?<![@\w.-])[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.(?:com|net|org|cn|io|shop|store|example|co|uk|de|app|dev|info)(?![A-Za-z0-9-])(?:/[^\s，。；、！？）”]*)?"
)
_ISO = re.compile(r"(?<!\d)(?P<y>20\d\d)[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})(?!\d)T?")
_ZH_DATE = re.compile(
    rf"(?:(?P<y>\d{{4}})\s*年\s*)?(?P<m>\d{{1,2}}|(?<![个十\d])[一二三四五六七八九十]{{1,2}})\s*月\s*(?:(?P<d>\d{{1,2}}|{_HAN})\s*[日号])?"
)
_MONTH = r"(?P<mon>Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)(?:uary|ruary|ch|il|e|y|ust|t(?:ember)?|ober|ember)?\.?"
_DAY = r"(?P<d{0}>\d{{1,2}})(?:st|nd|rd|th)?"
_EN_DATE = re.compile(
    rf"(?:{_DAY.format(1)} (?:of )?{_MONTH}|{_MONTH.replace('mon>', 'mon2>')} {_DAY.format(2)})(?!\d)(?:,? (?P<y>20\d\d)(?!\d))?"
)
_CLOCK = re.compile(
    r"(?:(?P<ap>上午|早上|早|凌晨|下午|晚上|傍晚|中午|晚)\s{0,2})?(?<!\d)(?P<h>[01]?\d|2[0-4]):(?P<m>[0-5]\d)(?::[0-5]\d)?(?!\d)(?:\s*(?P<ap2>[ap])\.?m\b\.?)?",
    re.IGNORECASE,
)
_OCLOCK = re.compile(r"(?<![\d.:])(?P<h>1[0-2]|0?[1-9])\s?(?P<ap2>[ap])\.?m\b\.?|(?<![\d.:])(?P<h2>1[0-2]|[1-9]) o'clock", re.IGNORECASE)
_DIAN = re.compile(
    rf"(?:(?P<ap>上午|早上|早|凌晨|下午|晚上|傍晚|中午|晚)\s*(?P<h>\d{{1,2}}|{_HAN})|(?P<h2>\d{{1,2}})\s*"
    rf"|(?P<h3>{_HAN})(?=点[半整钟前后到至开关之]))[点时](?!间)(?:(?P<half>半)|(?P<m>\d{{1,2}}|{_HAN})分)?"
)
_WEEKDAY = re.compile(
    r"\b(?P<a>Mon|Tue|Wed|Thu|Fri|Sat|Sun)(?:s|nes|rs|ur)?(?:day)s?\b(?:\s*(?:-|–|—|to|through|until)\s*(?P<b>Mon|Tue|Wed|Thu|Fri|Sat|Sun)(?:s|nes|rs|ur)?day)?"
    r"|\b(?P<c>Mon|Tue|Wed|Thu|Fri|Sat|Sun)\s*[-–—]\s*(?P<e>Mon|Tue|Wed|Thu|Fri|Sat|Sun)\b"
    r"|(?:周|星期|礼拜)(?P<f>[一二三四五六日天])(?:\s*(?:至|到|-|~|—)+\s*(?:周|星期|礼拜)?(?P<g>[一二三四五六日天]))?"
)
_PHONE = re.compile(
    r"(?<![\w.])(?:\+\d[\d\s().-]{6,16}\d|\(?\d{3,4}\)?[-.\s]\d{3,4}(?:[-.\s]\d{3,4}){0,2}|400\d{7})(?![\d.-]*\w)", re.ASCII
)
_CODE = re.compile(
    r"(?<![A-Za-z0-9-])(?=[A-Za-z0-9-]*[A-Za-z])(?=[A-Za-z0-9-]*\d)[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?![A-Za-z0-9])|(?<!\d)\d{6,}(?!\d)"
)
_NO_CODE = re.compile(r"\d+[-]?[a-z][a-z-]*|\d{1,2}[A-Z]|(?:USD|RMB|CNY|EUR|GBP)\d+|\d+(?:USD|RMB|CNY|EUR|GBP)|20\d\d-\d.*T?")
_COUPON = re.compile(
    r"(?:[Cc]ode|[Cc]oupon|[Vv]oucher|优惠码|折扣码|优惠券|兑换码|口令)[^A-Za-z0-9。.!?]{0,4}(?:is |为|是)?"
    r"[^A-Za-z0-9。.!?]{0,3}(?P<code>[A-Z][A-Z0-9]{3,})\b"
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """One thing that a text states, at `[start, end)`.

    Two quantities are the same thing when `key` is. `value` is the bare number behind it, where there is one; `unit` says what it counts.
    """

    kind: Kind
    key: tuple[object, ...]
    start: int
    end: int
    value: Decimal | None = None
    unit: str = ""


def narrow(text: str) -> str:
    """`text` with full-width digits, letters and signs in their ordinary form, every character in its place."""
    return text.translate(_WIDE)


@lru_cache(maxsize=4096)
def read(text: str) -> tuple[Quantity, ...]:
    """Everything `text` states, in its order. Citations like [1] and marks of lists are no numbers."""
    found: list[Quantity] = []
    rest = narrow(text)
    for pattern, make in _READERS:
        for match in list(pattern.finditer(rest)):
            made = list(make(match))
            found += made
            if made or make is _nothing:
                rest = rest[: match.start()] + " " * (match.end() - match.start()) + rest[match.end() :]
    return tuple(sorted(found, key=lambda one: one.start))


def number_of(word: str) -> Decimal:
    """The value of a number in figures, English words or Chinese characters."""
    if word[0].isascii() and word[0].isdigit():
        return Decimal(word.replace(",", ""))
    return Decimal(_chinese(word) if word[0] in "零〇一二两三四五六七八九十百千" else _english(word.lower()))


def _english(words: str) -> int:
    total = 0
    for word in words.replace("-", " ").split():
        total = total * 100 if word == "hundred" else total + _EN.get(word, _TENS.get(word, 0))
    return total


def _chinese(word: str) -> int:
    if not any(char in _ZH_POWERS for char in word):
        return int("".join(str(_ZH[char]) for char in word))
    total = digit = 0
    for char in word:
        if char in _ZH_POWERS:
            total, digit = total + (digit or 1) * _ZH_POWERS[char], 0
        else:
            digit = _ZH[char]
    return total + digit


def _nothing(match: re.Match[str]) -> Iterator[Quantity]:
    return iter(())


def _word_of(kind: Kind) -> Callable[[re.Match[str]], Iterator[Quantity]]:
    def make(match: re.Match[str]) -> Iterator[Quantity]:
        group = "code" if "code" in match.re.groupindex else 0
        word = match.group(group).rstrip(".,;:!?")
        if kind == "code" and _NO_CODE.fullmatch(word):
            return
        if kind == "phone" and sum(char.isdigit() for char in word) < 7:
            return
        plain = re.sub(r"^https?://(www\.)?|^www\.|/+$", "", word) if kind == "url" else word
        key = "".join(char for char in plain if char.isalnum()) if kind in ("phone", "code") else plain
        yield Quantity(kind, ("code" if kind == "phone" else kind, key.casefold()), match.start(group), match.start(group) + len(word))

    return make


def _date(match: re.Match[str]) -> Iterator[Quantity]:
    parts = match.groupdict()
    if month := parts.get("mon") or parts.get("mon2"):
        month_number, day = _MONTHS[month.lower()], int(parts["d1"] or parts["d2"])
    else:
        month_number, day = int(number_of(parts["m"])), int(number_of(parts["d"])) if parts["d"] else 0
    if 1 <= month_number <= 12 and 0 <= day <= 31:
        year = int(parts["y"]) if parts["y"] else 0
        yield Quantity("date", ("date", year, month_number, day), match.start(), match.end(), Decimal(day or month_number))


def _time(match: re.Match[str]) -> Iterator[Quantity]:
    parts = match.groupdict()
    hour = int(number_of(parts.get("h") or parts.get("h2") or parts.get("h3") or "0"))
    minute = 30 if parts.get("half") else int(number_of(parts.get("m") or "0"))
    half_day = (parts.get("ap2") or "").lower() or parts.get("ap") or ""
    if (half_day in ("p", "下午", "晚上", "傍晚", "晚") and hour < 12) or (half_day == "中午" and hour < 6):
        hour += 12
    elif half_day in ("a", "凌晨") and hour == 12:
        hour = 0
    if hour <= 24 and minute < 60:
        yield Quantity("time", ("time", hour * 60 + minute), match.start(), match.end(), Decimal(hour))


def _weekdays(match: re.Match[str]) -> Iterator[Quantity]:
    """Each day of a range on its own, so that whoever says Monday to Friday has said Wednesday."""
    parts = match.groupdict()
    first = _DAYS[(parts["a"] or parts["c"]).lower()] if parts["a"] or parts["c"] else _ZH_DAYS[parts["f"]]
    end = parts["b"] or parts["e"]
    last = _DAYS[end.lower()] if end else _ZH_DAYS[parts["g"]] if parts["g"] else first
    for day in range(first, first + (last - first) % 7 + 1):
        yield Quantity("date", ("weekday", day % 7), match.start(), match.end())


def _unit_of(match: re.Match[str]) -> tuple[str, Decimal]:
    for number, (dimension, factor, _) in enumerate(_UNITS):
        if match.group(f"u{number}"):
            return dimension, Decimal(factor)
    return "", Decimal(1)


def _amount(value: Decimal, dimension: str, factor: Decimal, start: int, end: int) -> Quantity:
    if dimension == "off":  # 9 折 and 85 折 are 10 % and 15 % off
        dimension, value, factor = "percent", 100 - value * (10 if value < 10 else 1), Decimal(1)
    if not dimension or (dimension == "months" and value >= 1900):
        return Quantity("number", ("number", value.normalize()), start, end, value)
    kind: Kind = "percentage" if dimension == "percent" else "price" if dimension in _MONEY.values() else "number"
    return Quantity(kind, (dimension, round(value * factor, 6).normalize()), start, end, value, dimension)


def _quantities(match: re.Match[str]) -> Iterator[Quantity]:
    """One number, or the two of a range, which share what they count. A number in words counts only before a unit."""
    dimension, factor = _unit_of(match)
    ends = {"a": match.end() if match["b"] is None else match.end("a"), "b": match.end()}
    for name, sign in (("a", "cur1"), ("b", "cur2")):
        if match[name] is None:
            continue
        prefix = (match[sign] or match["cur1"] or "").strip().lower()
        has_unit = bool(dimension or prefix)
        if not match[name][0].isdigit() and not has_unit:
            continue
        value = number_of(match[name]) * (10_000 if name == "a" and match["wan"] else 1)
        unit = (_MONEY[prefix], Decimal(1)) if prefix else (dimension, factor)
        start = match.start(sign) if match[sign] else match.start(name)
        yield _amount(value, *unit, start, ends[name] if has_unit else match.end(name))


def _part(match: re.Match[str]) -> Iterator[Quantity]:
    """Half of something, one of it, or hundredths."""
    value = number_of(match["hundredth"]) if match["hundredth"] else Decimal("0.5") if match["half"] else Decimal(1)
    unit = ("percent", Decimal(1)) if match["hundredth"] else _unit_of(match)
    yield _amount(value, *unit, match.start(), match.end())


# Each reader takes what it knows out of the text before the next one looks.
_READERS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Iterator[Quantity]]], ...] = (
    (_NOTHING, _nothing),
    (_EMAIL, _word_of("email")),
    (_URL, _word_of("url")),
    (_COUPON, _word_of("code")),
    (_ISO, _date),
    (_ZH_DATE, _date),
    (_EN_DATE, _date),
    (_WEEKDAY, _weekdays),
    (_CLOCK, _time),
    (_OCLOCK, _time),
    (_DIAN, _time),
    (_PHONE, _word_of("phone")),
    (_CODE, _word_of("code")),
    (_PART, _part),
    (_QUANTITY, _quantities),
)
