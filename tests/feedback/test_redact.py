"""Redaction: what it finds, what it leaves, and that no text can break it."""

import json
import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from feedback.redact import Redactor, find, is_cn_id, is_luhn
from tests.feedback.data.make_redaction import lines

DATA = Path(__file__).parent / "data"
NEEDED_RECALL, NEEDED_PRECISION = 0.99, 0.95


def read(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


CORPUS = read("redaction.jsonl") + read("redaction_hard.jsonl")


def wanted(line: dict[str, object]) -> set[tuple[str, int, int]]:
    text, places = str(line["text"]), set()
    for kind, surface in line["personal"]:  # type: ignore[attr-defined]
        start = text.index(surface)
        places.add((kind, start, start + len(surface)))
    return places


def fits(found: tuple[str, int, int], place: tuple[str, int, int]) -> bool:
    """The same kind, and nothing of it left standing; a bracket or a plus sign beside it may go too."""
    return found[0] == place[0] and found[1] <= place[1] and found[2] >= place[2] - 1 and found[2] - found[1] <= place[2] - place[1] + 2


def test_the_corpus_is_what_its_script_writes_and_large_enough() -> None:
    assert read("redaction.jsonl") == lines()
    assert len(CORPUS) >= 500


@pytest.mark.parametrize("kind", ["PHONE", "EMAIL", "CN_ID", "CARD"])
def test_recall(kind: str) -> None:
    missed, total = [], 0
    for line in CORPUS:
        found = [(one.kind, one.start, one.end) for one in find(str(line["text"]))]
        for place in wanted(line):
            if place[0] == kind:
                total += 1
                missed += [] if any(fits(one, place) for one in found) else [line["text"]]
    assert total > 80
    assert 1 - len(missed) / total >= NEEDED_RECALL, missed


def test_precision_where_order_numbers_stand_about() -> None:
    wrong, total = [], 0
    for line in CORPUS:
        for one in find(str(line["text"])):
            total += 1
            if not any(fits((one.kind, one.start, one.end), place) for place in wanted(line)):
                wrong.append((line["text"], one.kind, one.value))
    orders = [line for line in CORPUS if not line["personal"]]
    touched = [line["text"] for line in orders if find(str(line["text"]))]
    assert 1 - len(wrong) / total >= NEEDED_PRECISION, wrong
    assert len(touched) / len(orders) <= 1 - NEEDED_PRECISION, touched


def test_one_value_is_one_placeholder_in_a_conversation() -> None:
    redactor = Redactor()
    assert redactor.redact("打138 0013 8000或１３９００１３９０００") == "打[PHONE_1]或[PHONE_2]"
    assert redactor.redact("+86 13900139000, again 13800138000, a@b.co and A@B.CO") == "[PHONE_2], again [PHONE_1], [EMAIL_1] and [EMAIL_1]"
    assert Redactor().redact("13900139000") == "[PHONE_1]"


def test_the_shops_order_numbers_are_orders_whatever_they_look_like() -> None:
    redactor = Redactor(orders=(re.compile(r"\b1[3-9]\d{9}-K\b"), re.compile(r"\b62\d{14}\b")))
    assert redactor.redact("13800138000-K, 6222021234567894, 13800138000") == "[ORDER_1], [ORDER_2], [PHONE_1]"


def test_what_the_shop_publishes_stays() -> None:
    redactor = Redactor(public={"4008208820", "help@example.com"})
    assert redactor.redact("call 400-820-8820 or Help@example.com, I am on 13800138000") == (
        "call 400-820-8820 or Help@example.com, I am on [PHONE_1]"
    )


def test_what_a_number_hid_is_redacted_too() -> None:
    assert Redactor().redact("电话 5550142a5550143b5550144") == "电话 [PHONE_3]a[PHONE_2]b[PHONE_1]"


def test_checksums_against_published_examples() -> None:
    assert is_luhn("4111111111111111") and not is_luhn("4111111111111112")
    assert is_cn_id("11010519491231002X") and is_cn_id("440524188001010014")
    assert not is_cn_id("110105194912310021") and not is_cn_id("11010519490231002X") and not is_cn_id("652492709210264830")


PIECES = st.sampled_from(
    ["1380013", "8000", "@", ".com", "a", "订单号", "电话", "+86", " ", "-", "(", ")", "X", "６２２２", "零一", "\ud800", "️"]
)


@settings(max_examples=200, deadline=None)
@example("电话0000000a0000000")
@given(st.one_of(st.text(), st.lists(PIECES).map("".join), st.text(alphabet="0123456789 -X", max_size=60), st.from_regex(r"\d{18}")))
def test_any_text_is_redacted_and_stays_redacted(text: str) -> None:
    redactor = Redactor()
    redacted = redactor.redact(text)
    found = redactor.find(text)
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert [one for one in find(redacted) if one.kind != "ORDER" and one.value in {each.value for each in found}] == []


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES).map("".join), st.from_regex(r"\d{18}")))
def test_ten_thousand_texts(text: str) -> None:
    find(text)


SLOW = {"1 ": 300, "6222 0212 ": 600}


@pytest.mark.parametrize("piece", [*SLOW, "13800138000 ", "a@", "a.", "１３８", "a at b dot ", "一二三", "((((", "x1", "a" * 9 + "1"])
def test_the_time_grows_with_the_length(piece: str) -> None:
    """Ten times the text may take a few times ten times as long, which a quadratic pattern would not keep by far."""

    def seconds(chars: int) -> float:
        text, spans = piece * (chars // len(piece)), []
        for _ in range(3):
            start = time.thread_time()
            find(text)
            spans.append(time.thread_time() - start)
        return min(spans)

    size = SLOW.get(piece, 2_000)
    assert seconds(10 * size) <= 40 * seconds(size) + 0.02
