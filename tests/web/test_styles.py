"""What the page's styles and markup promise: contrast, one set of tokens, nothing from elsewhere, nothing inline."""

import re

import pytest

from web import ROOT, TEMPLATES

TOKENS = (ROOT / "static/css/tokens.css").read_text(encoding="utf-8")
SHEETS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "static/css").glob("*.css"))}
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "static").rglob("*.js"))}
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.rglob("*.html"))}
PAGE = "\n".join(PAGES.values())


def colours(theme: str) -> dict[str, str]:
    light, _, rest = TOKENS.partition("@media (prefers-color-scheme: dark)")
    dark = rest.partition("@media")[0]
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))
    return {**found, **dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", dark))} if theme == "dark" else found


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(theme: str) -> None:
    token = colours(theme)
    for ink in ("ink", "ink-quiet", "accent", "warn"):
        assert contrast(token[ink], token["ground"]) >= 4.5, ink
    for ink in ("ink", "ink-quiet"):
        assert contrast(token[ink], token["raised"]) >= 4.5, ink
    assert contrast(token["on-accent"], token["accent"]) >= 4.5
    assert contrast(token["line-strong"], token["ground"]) >= 3  # the edge of a control, WCAG 1.4.11


def test_both_themes_define_the_same_colours() -> None:
    dark = TOKENS.partition("@media (prefers-color-scheme: dark)")[2].partition("@media")[0]
    assert set(re.findall(r"--([\w-]+): #", dark)) == set(colours("light"))


def test_colours_come_from_tokens_alone() -> None:
    for name, sheet in SHEETS.items():
        if name != "tokens.css":
            assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgb\(|hsl\(", sheet), name
        assert "gradient" not in sheet, name
        assert "url(" not in sheet and "@import" not in sheet, name


def test_every_token_used_is_defined_and_every_one_defined_is_used() -> None:
    everything = "\n".join(SHEETS.values())
    defined = set(re.findall(r"(--[\w-]+):", TOKENS))
    assert set(re.findall(r"var\((--[\w-]+)", everything)) == defined


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    assert not re.search(r"\s(?:on\w+|style)=", PAGE)
    assert not re.search(r"<script(?![^>]*(?:\ssrc=|application/json))|<style", PAGE)
    for name, text in {**SCRIPTS, **PAGES}.items():
        addresses = [
            url
            for url in re.findall(r"https?://[^\s\"']+", text)
            if not url.startswith(("https://html.spec", "http://www.w3.org", "https://shop.example"))
        ]
        assert addresses == [], name


def test_scripts_never_turn_text_into_markup() -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|ContextualFragment"
    for name, script in SCRIPTS.items():
        assert not re.search(forbidden, script), name


def test_every_class_in_the_markup_has_a_style_and_the_other_way_round() -> None:
    styled = set(re.findall(r"\.([a-z][\w-]*)", re.sub(r"/\*.*?\*/|\d\.\d|{[^{}]*}", "", "\n".join(SHEETS.values()), flags=re.DOTALL)))
    marked = {name for names in re.findall(r'class="([^"]+)"', PAGE) for name in names.split()}
    marked |= set(re.findall(r'(?:className = |classList\.toggle\()"(\w+)"', "\n".join(SCRIPTS.values())))
    assert marked == styled
