"""Charts stay within their square, stand in the right order, and leave a gap where too little is known."""

import re

from hypothesis import given
from hypothesis import strategies as st

from feedback.insights import Measure, quantile
from server.console.charts import Drawing, draw_counts, draw_measures

SURE, UNSURE = Measure(0.5, 0.4, 0.6, 100), Measure(0.5, 0.1, 0.9, 19)
measures = st.builds(Measure.share, st.lists(st.booleans(), max_size=60)) | st.builds(
    quantile, st.lists(st.floats(0, 1e7), max_size=60), st.sampled_from((0.5, 0.95))
)


def kinds(drawing: Drawing) -> list[str]:
    return [shape.kind for shape in drawing.shapes]


def test_weeks_are_joined_and_a_week_of_too_few_is_a_gap() -> None:
    assert kinds(draw_measures([[SURE, SURE, UNSURE, SURE]], "week")) == ["band", "line", "dot", "dot", "whisker", "dot"]
    assert kinds(draw_measures([[SURE, SURE]], "adapter")) == ["whisker", "dot"] * 2
    assert kinds(draw_measures([[UNSURE], [UNSURE]], "week")) == []


@given(st.integers(1, 9).flatmap(lambda num: st.lists(st.lists(measures, min_size=num, max_size=num), min_size=1, max_size=3)))
def test_everything_is_inside_and_a_value_within_its_interval(series: list[list[Measure]]) -> None:
    for by in ("week", "adapter"):
        drawing = draw_measures(series, by)
        for shape in drawing.shapes:
            assert all(-0.01 <= float(number) <= 100.01 for number in re.findall(r"-?[\d.]+", shape.path.removesuffix("h0")))
        assert sum(shape.kind == "dot" for shape in drawing.shapes) == sum(each.is_enough for row in series for each in row)


@given(st.lists(st.tuples(*[st.integers(0, 5000)] * 3), min_size=1, max_size=12))
def test_bars_are_as_high_as_what_they_count(stacks: list[tuple[int, int, int]]) -> None:
    drawing = draw_counts(list(zip(*stacks, strict=True)))
    heights = [float(re.findall(r"v([\d.]+)", shape.path)[0]) for shape in drawing.shapes]
    assert len(heights) == sum(count > 0 for stack in stacks for count in stack)
    assert abs(sum(heights) * drawing.top / 100 - sum(map(sum, stacks))) <= 0.0051 * drawing.top / 100 * len(heights)
    assert drawing.top >= max(map(sum, stacks))
