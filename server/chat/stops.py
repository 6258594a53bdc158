"""Stop strings, found across token edges."""

from collections.abc import Sequence


class StopFinder:
    """Passes text through until a stop string is complete; of several, the one that is complete first counts.

    Only text that could still become a stop string is held back, so what comes out does not depend on how the text was cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._firsts = {stop[0] for stop in stops}
        self._held = ""
        self.found = ""
        self.rest = ""

    def push(self, text: str) -> str:
        """The text that is certain. A stop that is complete is named in `found`, and what came after it is in `rest`."""
        if not self._stops:
            return text
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            end, start = min(ends)
            self._held, self.rest, self.found = "", text[end:], text[start:end]
            return text[:start]
        cut = self._first_partial(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """The text held back, when nothing more will come."""
        held, self._held = self._held, ""
        return held

    def _first_partial(self, text: str) -> int:
        """Where the longest suffix starts that begins some stop string; the end of `text` if there is none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._firsts and any(stop.startswith(text[start:]) for stop in self._stops):
                return start
        return len(text)
