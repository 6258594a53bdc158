"""Only a fresh token that the site's own server signed, for this site, names a customer; and it does so once."""

import base64
import hashlib
import hmac
import json
import logging
import string
from itertools import count

import pytest

from server.desk.customers import MAX_LIFETIME_S, CustomerRefused, Customers
from server.settings import SiteSettings

OLD, NEW, OTHER = "a" * 32, "b" * 40, "c" * 32
SITES = {
    "shop": SiteSettings.model_validate({"origins": ["https://shop.example"], "keys": {"k1": OLD, "k2": NEW}}),
    "other": SiteSettings.model_validate({"keys": {"k1": OTHER}}),
    "demo": SiteSettings(),
}
NOW_S = 1_800_000_000
IDS = count()
LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
TWICE = b'{"alg":"none","alg":"HS256","kid":"k2"}'


def encoded(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def signed(key: str = NEW, header: dict[str, object] | None = None, **changed: object) -> str:
    """A JWT for customer 4711 of "shop", with some claims and header fields changed; None leaves one out."""
    claims = {"sub": "4711", "aud": "shop", "iat": NOW_S, "exp": NOW_S + 60, "jti": f"login-{next(IDS)}", **changed}
    head = {"alg": "HS256", "typ": "JWT", "kid": "k2", **(header or {})}
    text = ".".join(encoded({name: value for name, value in part.items() if value is not None}) for part in (head, claims))
    return f"{text}.{encoded(hmac.digest(key.encode(), text.encode(), hashlib.sha256))}"


class Clock:
    s = float(NOW_S)

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def customers(clock: Clock) -> Customers:
    return Customers(SITES, clock)


def test_each_key_of_the_site_names_its_customer(customers: Customers) -> None:
    assert customers.customer_id("shop", signed()) == "4711"
    assert customers.customer_id("shop", signed(OLD, {"kid": "k1"}, sub="客户-7")) == "客户-7"


def respelled(token: str) -> str:
    """The same bytes, with bits set that decoding drops."""
    return token[:-1] + LETTERS[LETTERS.index(token[-1]) + 1]


REFUSED = {
    "alg none": signed(header={"alg": "none"}),
    "alg none, unsigned": signed(header={"alg": "none"}).rpartition(".")[0] + ".",
    "alg in other letters": signed(header={"alg": "hs256"}),
    "another alg": signed(header={"alg": "HS512"}),
    "no alg": signed(header={"alg": None}),
    "critical extension": signed(header={"crit": ["b64"]}),
    "unknown kid": signed(header={"kid": "k3"}),
    "no kid": signed(header={"kid": None}),
    "a list for a kid": signed(header={"kid": ["k2"]}),
    "another key of the site": signed(OLD),
    "another site's key": signed(OTHER, {"kid": "k1"}),
    "empty key": signed(""),
    "wrong audience": signed(aud="other"),
    "audience as a list": signed(aud=["shop"]),
    "no audience": signed(aud=None),
    "expired": signed(iat=NOW_S, exp=NOW_S),
    "never expires": signed(exp=None),
    "lives too long": signed(exp=NOW_S + MAX_LIFETIME_S + 1),
    "issued in the future": signed(iat=NOW_S + 6, exp=NOW_S + 66),
    "issued before this process began": signed(iat=NOW_S - 1),
    "time as a boolean": signed(iat=True),
    "time as text": signed(exp=str(NOW_S + 60)),
    "no customer": signed(sub=""),
    "a number for a customer": signed(sub=4711),
    "a very long customer": signed(sub="x" * 201),
    "no jti": signed(jti=None),
    "a short jti": signed(jti="1"),
    "a changed claim": "{}.{}.{}".format(*(lambda p: (p[0], encoded({"sub": "1"}), p[2]))(signed().split("."))),
    "a signature's other spelling": respelled(signed()),
    "padding": signed() + "=",
    "two parts": ".".join(signed().split(".")[:2]),
    "four parts": signed() + ".x",
    "no json": f"{encoded(b'x')}.{encoded(b'y')}.{'A' * 43}",
    "a key twice": f"{encoded(TWICE)}.e30.{'A' * 43}",
    "blank": " ",
    "long": "a" * 5000 + "." + signed(),
    "not ascii": "é" + signed(),
}


@pytest.mark.parametrize("what", REFUSED)
def test_everything_else_is_refused_and_only_the_log_says_why(what: str, customers: Customers, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(CustomerRefused) as caught:
        customers.customer_id("shop", REFUSED[what])
    assert str(caught.value) == "this does not name a customer of this site"
    assert len(caplog.records) == 1
    assert "eyJ" not in caplog.text and "4711" not in caplog.text


@pytest.mark.parametrize("site", ["other", "demo", "", "nowhere"])
def test_a_token_of_one_site_is_none_for_another(customers: Customers, site: str) -> None:
    with pytest.raises(CustomerRefused):
        customers.customer_id(site, signed())


def test_a_token_is_good_for_one_use(customers: Customers, clock: Clock) -> None:
    token = signed(exp=NOW_S + MAX_LIFETIME_S)
    customers.customer_id("shop", token)
    for passed_s in (0, 300, MAX_LIFETIME_S):
        clock.s = NOW_S + passed_s
        with pytest.raises(CustomerRefused):
            customers.customer_id("shop", token)


def test_a_refused_token_uses_nothing_up(customers: Customers) -> None:
    with pytest.raises(CustomerRefused):
        customers.customer_id("shop", signed(OTHER, jti="the same"))
    assert customers.customer_id("shop", signed(jti="the same")) == "4711"
