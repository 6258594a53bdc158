"""Settings come from four places, and a mistake in any of them is one sentence."""

from pathlib import Path

import pytest

from server.settings import PREFIX, BadSettings, is_loopback, load_settings

HASH = "a" * 64
KEY = "a-key-of-the-shop-that-nobody-sees"
BAD_ORIGINS = (
    "*",
    "https://*.shop.example",
    "https://shop.example/",
    "shop.example",
    "https://Shop.example",
    "https://a b",
    "null",
    "'self'",
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    import os

    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_line_goes_before_variables_before_the_file(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean / "kefu.toml").write_text('[server]\nport = 1\nstrict = true\nmax_in_flight = 7\n[desk]\neffort = "high"\n')
    monkeypatch.setenv("KEFU_SERVER__PORT", "2")
    monkeypatch.setenv("KEFU_SERVER__MAX_IN_FLIGHT", "8")
    settings = load_settings({"server": {"port": 3, "host": None}, "data_dir": None})
    assert (settings.server.port, settings.server.max_in_flight, settings.server.strict) == (3, 8, True)
    assert (settings.desk.effort, settings.server.host) == ("high", "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("KEFU_SERVER__PORT", "secret", "server.port"),
        ("KEFU_SERVER__PORT", "70000", "server.port"),
        ("KEFU_SERVER__PROT", "1", "server.prot"),
        ("KEFU_SEVER__PORT", "1", "KEFU_SEVER__PORT"),
        ("KEFU_PORT", "1", "KEFU_PORT"),
        ("KEFU_SERVER__API_KEYS", "secret", "server.api_keys"),
        ("KEFU_DESK__EFFORT", "secret", "desk.effort"),
        ("KEFU_UPSTREAM__BASE_URL", "ftp://secret", "upstream.base_url"),
        ("KEFU_UPSTREAM__BASE_URL", "http://me:secret@gpu-box/v1", "upstream.base_url"),
        ("KEFU_SERVER", "{secret", "cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence_without_the_value(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings) as caught:
        load_settings()
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_upstreams_key_is_shown_nowhere_and_its_model_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEFU_UPSTREAM__BASE_URL", "http://gpu-box:8000/v1")
    monkeypatch.setenv("KEFU_UPSTREAM__API_KEY", "secret")
    settings = load_settings()
    assert settings.upstream.api_key.get_secret_value() == "secret"
    assert "secret" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    with pytest.raises(BadSettings, match="not both"):
        load_settings({"engine": {"model": "a.gguf"}})


def test_an_unreadable_file_and_an_unknown_key_in_it_are_refused(clean: Path) -> None:
    for text in ("[server", "[server]\nprot = 1\n", "[sever]\nport = 1\n", "port = 1\n"):
        (clean / "kefu.toml").write_text(text)
        with pytest.raises(BadSettings):
            load_settings()


def test_leaving_loopback_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSettings, match="API key"):
        load_settings({"server": {"host": "0.0.0.0"}})
    monkeypatch.setenv("KEFU_SERVER__API_KEYS", f"{HASH}, {HASH}")
    assert load_settings({"server": {"host": "0.0.0.0"}}).server.api_keys == (HASH, HASH)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.com", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_every_setting_says_what_it_is() -> None:
    settings = load_settings()
    for branch in (settings.server, settings.engine, settings.desk):
        assert all(field.description for field in type(branch).model_fields.values())


def test_a_site_is_named_in_the_file_and_its_keys_in_the_environment(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().sites["demo"].origins == ()
    (clean / "kefu.toml").write_text('[sites.shop]\norigins = ["https://shop.example", "http://localhost:8080"]\nlanguage = "zh"\n')
    monkeypatch.setenv("KEFU_SITES__SHOP__KEYS__2026A", KEY)
    monkeypatch.setenv("KEFU_SITES__SHOP__KEYS__2026B", "1" * 40)
    settings = load_settings()
    assert list(settings.sites) == ["shop"]
    shop = settings.sites["shop"]
    assert (shop.origins, shop.language) == (("https://shop.example", "http://localhost:8080"), "zh")
    assert {kid: key.get_secret_value() for kid, key in shop.keys.items()} == {"2026a": KEY, "2026b": "1" * 40}
    assert KEY not in f"{settings!r} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        *((f'origins = ["{origin}"]', "sites.shop.origins") for origin in BAD_ORIGINS),
        ('accent = "green"', "sites.shop.accent"),
        ('language = "fr"', "sites.shop.language"),
        ('origin = "https://shop.example"', "sites.shop.origin"),
        (f'[sites.shop.keys]\nk1 = "{KEY}"', "KEFU_SITES__SHOP__KEYS__KID"),
        ('[sites."no/such"]', "a-z"),
    ],
)
def test_a_mistake_in_a_site_is_one_sentence(clean: Path, line: str, said: str) -> None:
    (clean / "kefu.toml").write_text(f"[sites.shop]\n{line}\n")
    with pytest.raises(BadSettings) as caught:
        load_settings()
    assert said in str(caught.value) and KEY not in str(caught.value)


def test_a_short_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEFU_SITES__SHOP__KEYS__K1", "secret")
    with pytest.raises(BadSettings, match="32 characters") as caught:
        load_settings()
    assert "secret" not in str(caught.value)
