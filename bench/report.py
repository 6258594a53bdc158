"""What is printed: the rows, and how we stand beside llama.cpp's own programs."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from bench.rows import Row

_COLUMNS: dict[str, tuple[str, float, str]] = {
    "TTFT s": ("ttft_s", 1, ".2f"),
    "worst": ("worst_ttft_s", 1, ".2f"),
    "answer s": ("first_answer_s", 1, ".2f"),
    "wall s": ("wall_s", 1, ".2f"),
    "tok/s": ("tokens_per_s", 1, ".1f"),
    "decode": ("decode_tokens_per_s", 1, ".1f"),
    "a stream": ("stream_tokens_per_s", 1, ".1f"),
    "prefill": ("prefill_tokens_per_s", 1, ".1f"),
    "prompt": ("prompt_tokens", 1, ".0f"),
    "cached": ("cached_tokens", 1, ".0f"),
    "computed": ("computed_tokens", 1, ".0f"),
    "ideal": ("ideal_tokens", 1, ".0f"),
    "answered": ("completion_tokens", 1, ".0f"),
    "early": ("ended_early", 1, ".0f"),
    "MB": ("peak_memory_bytes", 1e-6, ".0f"),
    "client s": ("client_cpu_s", 1, ".2f"),
}


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of one row. An empty server means: the server under test."""

    field: str
    workload: str
    streams: int = 1
    server: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """Ours divided by theirs must be at least `least`, or at most `most`."""

    title: str
    ours: Measure
    theirs: Measure
    least: float | None = None
    most: float | None = None

    def is_met(self, ratio: float) -> bool:
        return (self.least is None or ratio >= self.least) and (self.most is None or ratio <= self.most)

    @property
    def wording(self) -> str:
        if self.least is not None:
            return f">= {self.least:.2f}"
        return "" if self.most is None else f"<= {self.most:.3f}"


def _peer(field: str, workload: str, streams: int = 1) -> Measure:
    return Measure(field, workload, streams, "llama-server")


BARS = (
    Bar("cold burst of 8: throughput", Measure("tokens_per_s", "burst-cold", 8), _peer("tokens_per_s", "burst-cold", 8), least=3),
    Bar("cold burst of 8: worst TTFT", Measure("worst_ttft_s", "burst-cold", 8), _peer("worst_ttft_s", "burst-cold", 8), most=1 / 6),
    Bar("warm burst, their cold one: worst TTFT", Measure("worst_ttft_s", "burst-warm", 8), _peer("worst_ttft_s", "burst-cold", 8), most=1 / 20),
    Bar("warm burst, both warm: throughput", Measure("tokens_per_s", "burst-warm", 8), _peer("tokens_per_s", "burst-warm", 8)),
    Bar("warm burst, both warm: worst TTFT", Measure("worst_ttft_s", "burst-warm", 8), _peer("worst_ttft_s", "burst-warm", 8)),
    Bar("places: computed / ideal", Measure("computed_tokens", "places", 8), Measure("ideal_tokens", "places", 8), most=1),
    Bar("places: computed", Measure("computed_tokens", "places", 8), _peer("computed_tokens", "places", 8)),
    Bar(
        "decode, 1 stream / llama-bench",
        Measure("decode_tokens_per_s", "decode", 1),
        Measure("decode_tokens_per_s", "decode", 1, "llama-bench"),
        least=0.97,
    ),
    Bar("prefill / llama-bench", Measure("prefill_tokens_per_s", "prefill"), Measure("prefill_tokens_per_s", "prefill", 1, "llama-bench"), least=0.95),
    Bar(
        "decode, 8 streams / llama-batched-bench",
        Measure("decode_tokens_per_s", "decode", 8),
        Measure("decode_tokens_per_s", "decode", 8, "llama-batched-bench"),
        least=1.0,
    ),
    Bar("prefill / llama-server", Measure("prefill_tokens_per_s", "prefill"), _peer("prefill_tokens_per_s", "prefill")),
    *(
        Bar(f"decode, {streams} streams / llama-server", Measure("tokens_per_s", "decode", streams), _peer("tokens_per_s", "decode", streams), least)
        for streams, least in ((1, None), (4, None), (8, None), (16, 0.7))
    ),
    *(
        Bar(f"turn {number}: computed / ideal", Measure("computed_tokens", f"turn-{number}"), Measure("ideal_tokens", f"turn-{number}"), most=1)
        for number in range(2, 6)
    ),
    *(
        Bar(f"turn {number}: computed", Measure("computed_tokens", f"turn-{number}"), _peer("computed_tokens", f"turn-{number}"))
        for number in range(2, 6)
    ),
)


def rows_table(rows: Sequence[Row]) -> Table:
    """Every row; columns in which nothing is known are left out."""
    table = Table("server", "workload", "streams")
    shown = {title: column for title, column in _COLUMNS.items() if any(getattr(row, column[0]) is not None for row in rows)}
    for title in shown:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(row.server, row.workload, str(row.streams), *(_cell(row, *column) for column in shown.values()))
    return table


def ratios_table(rows: Sequence[Row], ours: str) -> Table:
    """The comparisons that these rows allow, with the bar where there is one."""
    table = Table("comparison")
    for title in (ours, "theirs", "ratio", "bar", ""):
        table.add_column(title, justify="right")
    for bar in BARS:
        mine, theirs = value_of(rows, bar.ours, ours), value_of(rows, bar.theirs, ours)
        if mine is not None and theirs:
            ratio = mine / theirs
            verdict = ("met" if bar.is_met(ratio) else "missed") if bar.wording else ""
            table.add_row(bar.title, f"{mine:.2f}", f"{theirs:.2f}", f"{ratio:.3f}", bar.wording, verdict)
    return table


def value_of(rows: Sequence[Row], measure: Measure, ours: str) -> float | None:
    """The number that `measure` names, or None when it was not measured."""
    key = (measure.server or ours, measure.workload, measure.streams)
    return next((getattr(row, measure.field) for row in rows if row.key == key), None)


def _cell(row: Row, name: str, scale: float, form: str) -> str:
    value: float | None = getattr(row, name)
    return "" if value is None else format(value * scale, form)
