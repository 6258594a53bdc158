"""A site's one colour, made legible on both grounds (WCAG 2.2, 1.4.3 and 1.4.6), as the tokens of web/static/css/tokens.css."""

LIGHT = "#fcfcfa"
DARK = "#181917"
# Bright on dark looks dimmer than its ratio says; there it is WCAG's stricter one.
ON_LIGHT, ON_DARK = 4.5, 7.0
STEPS = 20


def stylesheet(accent: str) -> bytes:
    """The tokens of one site, for the page in the frame and for the button on the host page."""
    light, dark = _legible(accent, LIGHT, "#000000", ON_LIGHT), _legible(accent, DARK, "#ffffff", ON_DARK)
    rule = ":root, :host {{ --accent: {}; --on-accent: {}; }}"
    return f"{rule.format(light, '#ffffff')}\n@media (prefers-color-scheme: dark) {{ {rule.format(dark, DARK)} }}\n".encode()


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours `#rrggbb`, 1 to 21."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _legible(colour: str, ground: str, towards: str, wanted: float) -> str:
    mixed = (_mix(colour, towards, step / STEPS) for step in range(STEPS + 1))
    return next(each for each in mixed if contrast(each, ground) >= wanted)


def _mix(one: str, other: str, share: float) -> str:
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(_channels(one), _channels(other), strict=True))


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (each / 255 for each in _channels(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
