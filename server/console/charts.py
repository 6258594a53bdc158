"""Charts as paths for a template, in a square of 100 by 100 that the page stretches; y grows downward."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import floor, log10
from typing import Literal

from feedback.insights import By, Measure


@dataclass(frozen=True, slots=True)
class Shape:
    """`tone` is the number of its series, from 0, and gives it its colour."""

    kind: Literal["band", "line", "whisker", "dot", "bar"]
    tone: int
    path: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """`top` is the value at the upper edge; the lower edge is 0."""

    top: float
    shapes: list[Shape]


def draw_measures(series: Sequence[Sequence[Measure]], by: By) -> Drawing:
    """Each series over its slices with its intervals: weeks joined, adapters side by side. Too few cases are a gap."""
    top = _round_up(max((each.high for row in series for each in row if each.is_enough), default=1))
    shapes = []
    for tone, row in enumerate(series):
        aside = 0.5 if by == "week" else (tone + 1) / (len(series) + 1)
        points = [(100 * (place + aside) / len(row), each) if each.is_enough else None for place, each in enumerate(row)]
        told = [[point for point in run if point] for _, run in groupby(points, key=lambda point: point is not None)]
        runs = told if by == "week" else [[point] for run in told for point in run]
        for run in filter(None, runs):
            lows, middles, highs = ([f"{x:.2f} {_y(getattr(each, name), top)}" for x, each in run] for name in ("low", "value", "high"))
            if len(run) > 1:
                shapes.append(Shape("band", tone, f"M{'L'.join(highs + lows[::-1])}Z"))
                shapes.append(Shape("line", tone, f"M{'L'.join(middles)}"))
            else:
                shapes.append(Shape("whisker", tone, f"M{lows[0]}L{highs[0]}"))
            shapes += [Shape("dot", tone, f"M{middle}h0") for middle in middles]
    return Drawing(top, shapes)


def draw_counts(series: Sequence[Sequence[int]]) -> Drawing:
    """One bar a slice, the series on top of each other, the first one lowest."""
    stacks = list(zip(*series, strict=True))
    top, shapes = _round_up(max(map(sum, stacks), default=1)), []
    width = 60 / len(stacks)
    for place, stack in enumerate(stacks):
        for tone, count in enumerate(stack):
            edge = f"M{100 * (place + 0.2) / len(stacks):.2f} {_y(sum(stack[: tone + 1]), top)}"
            shapes += [Shape("bar", tone, f"{edge}h{width:.2f}v{100 * count / top:.2f}h-{width:.2f}Z")] if count else []
    return Drawing(top, shapes)


def _y(value: float, top: float) -> str:
    return f"{100 - 100 * value / top:.2f}"


def _round_up(value: float) -> float:
    """To one digit, so that little of the square stays empty."""
    power = 10.0 ** floor(log10(value or 1))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))
