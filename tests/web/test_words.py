"""Every word on screen comes from web/i18n, in each language."""

import json
import re
from typing import get_args

from fastapi import FastAPI
from fastapi.testclient import TestClient

from feedback.pairs import Origin
from server.console.nav import NAV
from server.routes.pages import pages_router
from web import ROOT, TEMPLATES, load_strings

STRINGS = load_strings()
SCRIPTS = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "static").rglob("*.js")))
PAGE = "\n".join(path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.rglob("*.html")))
# Words that code or a loop in a template puts together, by what stands before the part that varies.
PREFIXES = (
    "console_role_",
    "console_key_",
    "console_filter_",
    "console_refused_",
    "console_status_",
    "console_problem_",
    "console_inbox_",
    "console_check_",
    "console_insights_",
    "console_review_",
    "console_rounds_",
)
DEMO = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "i18n" / "demo").glob("*.json")}


def holes(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def test_the_languages_say_the_same_things() -> None:
    assert list(STRINGS["en"]) == list(STRINGS["zh"])
    for key, words in STRINGS["en"].items():
        assert words.strip() and STRINGS["zh"][key].strip(), key
        assert holes(words) == holes(STRINGS["zh"][key]), key


def test_chinese_is_chinese() -> None:
    for key, words in STRINGS["zh"].items():
        assert key in ("html_lang", "shop_language", "counter") or re.search(r"[\u4e00-\u9fff]", words), key
    for key, words in STRINGS["en"].items():
        assert not re.search(r"[\u3000-\u9fff\uff00-\uffef]", words), key


def test_the_demonstration_says_the_same_in_both() -> None:
    assert sorted(DEMO) == ["en", "zh"] and list(DEMO["en"]) == list(DEMO["zh"])
    assert all(words.strip() for language in DEMO.values() for words in language.values())
    page = (TEMPLATES / "demo.html").read_text(encoding="utf-8")
    goods = re.findall(r'\("(\w+)",', page)
    named = set(re.findall(r"\bd\.(\w+)", page)) | {f"{each}{end}" for each in goods for end in ("", "_note", "_price")}
    named |= {f"{each}{end}" for each in ("shipping", "returns", "hours") for end in ("", "_text")}
    assert named == set(DEMO["en"])


def used() -> set[str]:
    named = (
        set(re.findall(r"\b(?:t|other)\.(\w+)", PAGE))
        | set(re.findall(r'"([a-z_]+)"', SCRIPTS))
        | set(re.findall(r"\b(widget_\w+)", SCRIPTS))
    )
    problems = re.findall(r'DeskError\(.*?"(\w+)"', SCRIPTS) + re.findall(r'"(offline|unreachable)"', SCRIPTS)
    problems += re.findall(r': "(\w+)"', SCRIPTS[SCRIPTS.index("PROBLEM_BY_CODE") : SCRIPTS.index("const problemOf")])
    tags = re.findall(r'"(\w+)"', re.search(r"const TAGS = \{.*\};", SCRIPTS)[0])  # type: ignore[index]
    put_together = {key for key in STRINGS["en"] if key.startswith(PREFIXES)} | {item.words for item in NAV}
    return named | put_together | {f"problem_{each}" for each in (*problems, "server")} | {f"tag_{each}" for each in tags}


def test_no_word_is_missing_and_none_is_left_over() -> None:
    keys = set(STRINGS["en"])
    assert keys <= used()
    said = set(re.findall(r'\bsay\("(\w+)"', SCRIPTS)) | set(re.findall(r"\bt\.(\w+)", PAGE))
    assert said <= keys
    assert {each for each in used() if each.startswith(("problem_", "tag_", "ended_"))} <= keys


def test_markup_holds_no_words_of_its_own() -> None:
    text = re.sub(r"{%.*?%}|<code.*?</code>|<pre>.*?</pre>|{{.*?}}|<script.*?</script>|<[^>]*>", " ", PAGE, flags=re.DOTALL)
    assert set(re.findall(r"\w+", text)) <= {"kefu"}
    assert not re.search(r'(?:aria-label|title|placeholder)="[^"{]', PAGE)


def test_scripts_hold_no_words_of_their_own() -> None:
    assert not re.search(r"[\u3000-\u9fff]", SCRIPTS)
    assert not re.search(r'textContent = (?:"[^"]|`)', SCRIPTS)


def test_a_customer_is_not_sent_the_words_of_the_console() -> None:
    app = FastAPI()
    app.include_router(pages_router())
    assert "console_" not in TestClient(app).get("/").text


def test_every_label_in_the_rendered_page_is_a_string_of_ours() -> None:
    app = FastAPI()
    app.include_router(pages_router())
    for language in ("en", "zh"):
        page = TestClient(app).get(f"/?lang={language}").text
        labels = set(re.findall(r'(?:aria-label|title|placeholder)="([^"]*)"', page))
        assert labels
        assert labels <= set(STRINGS[language].values())


def test_every_origin_of_a_pair_has_words() -> None:
    assert {f"console_review_origin_{origin}" for origin in get_args(Origin)} <= set(STRINGS["en"])
