"""What is printed: the rows, and how we stand beside llama.cpp's own programs."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from bench.rows import Row

Columns = dict[str, tuple[str, float, str]]
SPEED: Columns = {
    "TTFT s": ("ttft_s", 1, ".2f"),
    "worst": ("worst_ttft_s", 1, ".2f"),
    "answer s": ("first_answer_s", 1, ".2f"),
    "worst answer": ("worst_answer_s", 1, ".2f"),
    "wall s": ("wall_s", 1, ".2f"),
    "tok/s": ("tokens_per_s", 1, ".1f"),
    "decode": ("decode_tokens_per_s", 1, ".1f"),
    "a stream": ("stream_tokens_per_s", 1, ".1f"),
    "prefill": ("prefill_tokens_per_s", 1, ".1f"),
}
COST: Columns = {
    "prompt": ("prompt_tokens", 1, ".0f"),
    "cached": ("cached_tokens", 1, ".0f"),
    "computed": ("computed_tokens", 1, ".0f"),
    "ideal": ("ideal_tokens", 1, ".0f"),
    "answered": ("completion_tokens", 1, ".0f"),
    "early": ("ended_early", 1, ".0f"),
    "peak MB": ("peak_memory_bytes", 1e-6, ".0f"),
    "client s": ("client_cpu_s", 1, ".2f"),
    "web s": ("web_cpu_s", 1, ".2f"),
}


@dataclass(frozen=True, slots=True)
class Measure:
    """One number: a field of the row of a workload and its streams. An empty server means the server under test."""

    place: tuple[str, int]
    field: str
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


PEER, PLAIN = "llama-server", "kefu, no guesses"
COLD, WARM = ("burst-cold", 8), ("burst-warm", 8)
DECODE, DECODE_8 = ("decode", 1), ("decode", 8)
PREFILL, PLACES = ("prefill", 1), ("places", 8)
TURNS = tuple((f"turn-{number}", 1) for number in range(2, 6))
RATE, DECODE_RATE, PREFILL_RATE, WORST = "tokens_per_s", "decode_tokens_per_s", "prefill_tokens_per_s", "worst_ttft_s"
STREAM_RATE = "stream_tokens_per_s"
COMPUTED, IDEAL = "computed_tokens", "ideal_tokens"


def _both(title: str, place: tuple[str, int], field: str, least: float | None = None, most: float | None = None) -> Bar:
    return Bar(title, Measure(place, field), Measure(place, field, PEER), least, most)


BARS = (
    _both("cold burst of 8: throughput", COLD, RATE, least=3),
    _both("cold burst of 8: worst TTFT", COLD, WORST, most=1 / 6),
    Bar("warm burst to their cold one: worst TTFT", Measure(WARM, WORST), Measure(COLD, WORST, PEER), most=1 / 20),
    _both("warm burst of 8: throughput", WARM, RATE),
    _both("warm burst of 8: worst TTFT", WARM, WORST),
    Bar("places: computed to ideal tokens", Measure(PLACES, COMPUTED), Measure(PLACES, IDEAL), most=1),
    _both("places: computed tokens", PLACES, COMPUTED),
    Bar("decode, 1 stream to llama-bench", Measure(DECODE, DECODE_RATE), Measure(DECODE, DECODE_RATE, "llama-bench"), least=0.97),
    Bar("prefill to llama-bench", Measure(PREFILL, PREFILL_RATE), Measure(PREFILL, PREFILL_RATE, "llama-bench"), least=0.95),
    Bar(
        "decode, 8 streams to llama-batched-bench",
        Measure(DECODE_8, DECODE_RATE),
        Measure(DECODE_8, DECODE_RATE, "llama-batched-bench"),
        least=1,
    ),
    _both("prefill", PREFILL, PREFILL_RATE),
    *(_both(f"decode, {streams} streams", ("decode", streams), RATE) for streams in (1, 4, 8)),
    _both("decode, 16 streams", ("decode", 16), RATE, least=0.7),
    *(Bar(f"{turn[0]}: computed to ideal tokens", Measure(turn, COMPUTED), Measure(turn, IDEAL), most=1) for turn in TURNS),
    *(
        Bar(f"{kind}: decode to decode without guesses", Measure((kind, 1), STREAM_RATE), Measure((kind, 1), STREAM_RATE, PLAIN))
        for kind in ("guess-quoting", "guess-free")
    ),
    *(_both(f"{turn[0]}: computed tokens", turn, COMPUTED) for turn in TURNS),
)


def rows_table(rows: Sequence[Row], columns: Columns) -> Table:
    """The rows that have a number in one of `columns`."""
    table = Table("server", "workload", "streams")
    for title in columns:
        table.add_column(title, justify="right")
    for row in rows:
        cells = [_cell(row, *column) for column in columns.values()]
        if any(cells):
            table.add_row(row.server, row.workload, str(row.streams), *cells)
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
    key = (measure.server or ours, *measure.place)
    return next((getattr(row, measure.field) for row in rows if row.key == key), None)


def _cell(row: Row, name: str, scale: float, form: str) -> str:
    value: float | None = getattr(row, name)
    return "" if value is None else format(value * scale, form)
