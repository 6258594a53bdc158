"""The arithmetic of a row, and its form on disk."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from bench.client import Reply
from bench.report import BARS, SPEED, Bar, Measure, ratios_table, rows_table, value_of
from bench.rows import Row, median_of, medians, summarize, write_json_lines


def reply(sent_s: float, first_s: float, end_s: float, tokens: int, finish_reason: str = "length") -> Reply:
    return Reply(sent_s, end_s, first_s, None, "", finish_reason, prompt_tokens=100, cached_tokens=40, completion_tokens=tokens)


def test_streams_are_added_up() -> None:
    row = summarize("kefu", "decode", [reply(0, 1, 11, 21), reply(0, 3, 13, 41, "stop")], wall_s=20)
    assert row.key == ("kefu", "decode", 2)
    assert (row.ttft_s, row.worst_ttft_s, row.first_answer_s) == (2, 3, None)
    assert row.tokens_per_s == pytest.approx(62 / 20)
    assert row.decode_tokens_per_s == pytest.approx((62 - 2) / (13 - 1))
    assert row.stream_tokens_per_s == pytest.approx((2.0 + 4.0) / 2)
    assert (row.prompt_tokens, row.cached_tokens, row.computed_tokens, row.completion_tokens) == (200, 80, 120, 62)
    assert row.ended_early == 1


def test_a_single_token_has_no_decode_rate() -> None:
    assert summarize("kefu", "prefill", [reply(0, 1, 1.1, 1)], wall_s=1.1).decode_tokens_per_s is None


def test_the_median_is_taken_field_by_field_and_keeps_whole_tokens_whole() -> None:
    rows = [Row("kefu", "turn-1", wall_s=wall_s, cached_tokens=cached) for wall_s, cached in ((3.0, 10), (1.0, 20), (2.0, 40), (9.0, 50))]
    row = median_of(rows)
    assert (row.wall_s, row.cached_tokens, row.repeats, row.first_answer_s) == (2.5, 20, 4, None)


def test_an_unknown_number_does_not_pull_a_median_down() -> None:
    assert median_of([Row("kefu", "turn-1", first_answer_s=value) for value in (None, 4.0, 6.0)]).first_answer_s == 5.0


def test_different_measurements_have_no_common_median() -> None:
    with pytest.raises(ValueError, match="repeats of one measurement"):
        median_of([Row("kefu", "decode", 1), Row("kefu", "decode", 8)])
    assert [row.streams for row in medians([Row("kefu", "decode", 1), Row("kefu", "decode", 8), Row("kefu", "decode", 1)])] == [1, 8]


def test_a_json_line_carries_every_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_json_lines(path, [Row("kefu", "decode", 8, tokens_per_s=2.5), Row("kefu", "prefill")])
    first, second = map(json.loads, path.read_text().splitlines())
    assert set(first) == set(second) == {field.name for field in fields(Row)}
    assert Row(**first) == Row("kefu", "decode", 8, tokens_per_s=2.5)


@pytest.mark.parametrize(("ratio", "met"), [(0.96, False), (0.97, True), (1.3, True)])
def test_a_bar_from_below(ratio: float, met: bool) -> None:
    measure = Measure(("decode", 1), "tokens_per_s")
    assert Bar("decode", measure, measure, least=0.97).is_met(ratio) is met


def test_a_bar_from_above_is_missed_by_more() -> None:
    measure = Measure(("burst-cold", 8), "worst_ttft_s")
    assert Bar("burst", measure, measure, most=0.5).is_met(0.5)
    assert not Bar("burst", measure, measure, most=0.5).is_met(0.51)


def test_every_bar_names_a_number_that_a_row_has() -> None:
    names = {field.name for field in fields(Row)}
    assert {measure.field for bar in BARS for measure in (bar.ours, bar.theirs)} <= names


def test_ratios_are_shown_only_for_what_both_sides_measured() -> None:
    rows = [Row("kefu", "decode", 8, decode_tokens_per_s=90.0), Row("llama-batched-bench", "decode", 8, decode_tokens_per_s=100.0)]
    table = ratios_table(rows, "kefu")
    assert [list(column.cells) for column in table.columns[3:]] == [["0.900"], [">= 1.00"], ["missed"]]
    assert value_of(rows, Measure(("decode", 1), "tokens_per_s"), "kefu") is None


def test_a_row_without_numbers_is_not_printed() -> None:
    assert rows_table([Row("kefu", "decode"), Row("kefu", "decode", 4, wall_s=1.0)], SPEED).row_count == 1
