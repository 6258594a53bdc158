"""Only a token that this desk signed, for this purpose, not long ago, names a visitor."""

import base64
import json
import os
from pathlib import Path

import pytest
from itsdangerous import URLSafeSerializer, URLSafeTimedSerializer

from server.desk.visitors import PURPOSE, RENEWABLE_S, TOKEN_LIFETIME_S, InvalidToken, Visitors

NOW_S = 1_800_000_000
OTHERS = (("shop", "4712"), ("other", "4711"), ("sho", "p\x004711"))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "visitor.key"


class Time:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = NOW_S
        monkeypatch.setattr("itsdangerous.timed.time.time", lambda: self.now_s)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def test_a_token_names_its_visitor_until_it_expires(key_file: Path, time: Time) -> None:
    visitors = Visitors(key_file)
    admitted = visitors.admit()
    time.now_s += TOKEN_LIFETIME_S
    assert visitors.visitor_id(admitted.token) == admitted.visitor_id
    time.now_s += 1
    with pytest.raises(InvalidToken):
        visitors.visitor_id(admitted.token)


def test_renewal_keeps_the_visitor_for_a_month_after_the_last_token(key_file: Path, time: Time) -> None:
    visitors = Visitors(key_file)
    admitted = visitors.admit()
    time.now_s += RENEWABLE_S
    renewed = visitors.renew(admitted.token)
    assert renewed.visitor_id == admitted.visitor_id
    assert visitors.visitor_id(renewed.token) == admitted.visitor_id
    time.now_s += 1
    with pytest.raises(InvalidToken):
        visitors.renew(admitted.token)


def test_a_token_from_the_future_is_refused(key_file: Path, time: Time) -> None:
    visitors = Visitors(key_file)
    admitted = visitors.admit()
    time.now_s -= 3600
    with pytest.raises(InvalidToken):
        visitors.visitor_id(admitted.token)


def unsigned(claims: dict[str, object]) -> str:
    parts = ({"alg": "none", "typ": "JWT"}, claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def test_forged_and_foreign_tokens_are_refused(key_file: Path, tmp_path: Path) -> None:
    visitors = Visitors(key_file)
    token = visitors.admit().token
    payload, signed_at, signature = token.split(".")
    key = key_file.read_text().split()[-1]
    forged = [
        "",
        " ",
        "vis_aaaaaaaaaaaaaaaaaaaa",
        f"{payload}.{signed_at}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}",
        f"{payload}.{signed_at}.",
        f"{payload}.ZZZZZZ.{signature}",
        "x" + token,
        token + ".",
        token.replace(".", "..", 1),
        Visitors(tmp_path / "other.key").admit().token,
        str(URLSafeTimedSerializer(key, salt="kefu.console.agent").dumps("vis_a")),
        str(URLSafeSerializer(key, salt=PURPOSE).dumps("vis_a")),
        unsigned({"sub": "vis_a"}),
        "' OR 1=1--",
        "é" * 10,
        "a" * 10_000,
        "\udc80",
    ]
    for each in forged:
        for read in (visitors.visitor_id, visitors.renew):
            with pytest.raises(InvalidToken):
                read(each)


def test_a_token_is_for_one_site_only(key_file: Path) -> None:
    visitors = Visitors(key_file)
    tokens = {site: visitors.admit(site).token for site in ("", "shop", "other")}
    for site, token in tokens.items():
        assert visitors.renew(token, site).visitor_id == visitors.visitor_id(token, site)
        for wrong in {*tokens, "nowhere", "shop@"} - {site}:
            for read in (visitors.visitor_id, visitors.renew):
                with pytest.raises(InvalidToken):
                    read(token, wrong)


def test_a_known_customer_is_always_the_same_visitor_and_named_anew_each_time(key_file: Path) -> None:
    known = Visitors(key_file).know("shop", "4711")
    again = Visitors(key_file)
    assert again.know("shop", "4711").visitor_id == known.visitor_id == again.visitor_id(known.token, "shop")
    assert "4711" not in known.visitor_id and len({known.visitor_id, *(again.know(*who).visitor_id for who in OTHERS)}) == 4
    with pytest.raises(InvalidToken):
        again.renew(known.token, "shop")


def test_an_added_key_signs_and_a_deleted_one_stops_counting_at_once(key_file: Path) -> None:
    visitors = Visitors(key_file)
    old = visitors.admit()
    key_file.write_text(key_file.read_text() + "another-key-of-some-length\n")
    os.utime(key_file, ns=(1, 1))
    new = visitors.admit()
    assert visitors.visitor_id(old.token) == old.visitor_id
    key_file.write_text("another-key-of-some-length\n")
    os.utime(key_file, ns=(2, 2))
    assert visitors.visitor_id(new.token) == new.visitor_id
    with pytest.raises(InvalidToken):
        visitors.visitor_id(old.token)


def test_the_key_outlives_the_process_and_is_its_owners(key_file: Path) -> None:
    token = Visitors(key_file).admit().token
    assert key_file.stat().st_mode & 0o777 == 0o600
    Visitors(key_file).visitor_id(token)


def test_an_empty_key_file_signs_nothing(key_file: Path) -> None:
    key_file.touch()
    with pytest.raises(ValueError, match="holds no key"):
        Visitors(key_file).admit()


def test_a_known_customers_token_names_them_to_tools_and_an_anonymous_one_nobody(key_file: Path) -> None:
    known = Visitors(key_file).know("shop", "a@b\0c")
    later = Visitors(key_file)
    assert later.customer_of(known.visitor_id) == ("", "")
    assert later.visitor_id(known.token, "shop") == known.visitor_id
    assert later.customer_of(known.visitor_id) == ("shop", "a@b\0c")
    stranger = later.admit("shop")
    later.visitor_id(stranger.token, "shop")
    assert later.customer_of(stranger.visitor_id) == ("", "")
    with pytest.raises(InvalidToken):
        later.visitor_id(known.token, "shop@a")
