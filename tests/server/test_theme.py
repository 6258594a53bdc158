"""One colour of the site's choice, and text that can be read in it on both grounds."""

import re

from hypothesis import given
from hypothesis import strategies as st

from server.theme import DARK, LIGHT, contrast, stylesheet

COLOURS = st.integers(0, 0xFFFFFF).map(lambda number: f"#{number:06x}")


@given(COLOURS)
def test_every_colour_becomes_legible(accent: str) -> None:
    light, dark = re.findall(r"--accent: (#[0-9a-f]{6}); --on-accent: (#[0-9a-f]{6})", stylesheet(accent).decode())
    assert contrast(light[0], LIGHT) >= 4.5 and contrast(*light) >= 4.5
    assert contrast(dark[0], DARK) >= 4.5 and contrast(*dark) >= 4.5


def test_a_legible_colour_stays_as_it_is() -> None:
    assert "--accent: #1c6b57" in stylesheet("#1c6b57").decode()


def test_contrast_is_the_ratio_of_wcag() -> None:
    assert round(contrast("#000000", "#ffffff"), 2) == 21
    assert round(contrast("#777777", "#ffffff"), 2) == 4.48
