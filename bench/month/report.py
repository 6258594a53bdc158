"""The month's page: one file with the console's charts and colours, no script, and nothing that comes from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.month.customers import Told
from feedback.evaluation import Metrics
from feedback.insights import Measure
from server.console.charts import Drawing, draw_measures
from server.routes.insights import say, say_interval

HERE, CSS = Path(__file__).parent, Path(__file__).parents[2] / "web" / "static" / "css"


@dataclass(frozen=True, slots=True)
class Step:
    """`held` says whether what was promised came true; `said` what was done, in figures."""

    name: str
    held: bool
    said: str
    seconds: float


@dataclass(slots=True)
class Outcome:
    """All that the page shows. `samples` are answers to the same questions at two times; `signals` number and weight of each kind."""

    num: int
    seed: str
    steps: list[Step] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    samples: dict[str, list[Told]] = field(default_factory=dict)
    signals: dict[str, tuple[int, float]] = field(default_factory=dict)
    rounds: dict[str, Metrics] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chart:
    """One idea: its series, the slices that each has a measure of, and both drawn."""

    title: str
    lead: str
    series: Sequence[str]
    slices: Sequence[str]
    rows: Sequence[Sequence[Measure]]

    @property
    def drawing(self) -> Drawing:
        return draw_measures(self.rows, "adapter")


def write_report(outcome: Outcome, folder: Path) -> Path:
    """`loop.html` in the folder, and beside it `loop.json`, from which `render` makes the page again."""
    (folder / "loop.json").write_bytes(msgspec.json.encode(outcome))
    (folder / "loop.html").write_text(render(outcome), encoding="utf-8")
    return folder / "loop.html"


def render(outcome: Outcome) -> str:
    """The page."""
    pages = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    css = "\n".join((CSS / name).read_text(encoding="utf-8") for name in ("tokens.css", "console_insights.css"))
    words = {"say": say, "say_interval": say_interval, "css": css, "charts": _charts(outcome)}
    return pages.get_template("report.html").render(outcome=outcome, **words)


def _charts(outcome: Outcome) -> list[Chart]:
    """What there is something to show of."""
    kinds, sides, ends = ("slang", "plain"), ("before", "after"), {"is_met": "in the end", "was_right": "at once"}
    sampled = [[_share(told, kind, "was_right") for told in outcome.samples.values()] for kind in kinds]
    found = [(f"{name}, {label}", each) for name, metrics in outcome.rounds.items() for label, each in metrics.sets.items()]
    changed = [[Measure(*(*getattr(each, side), each.num)) for _, each in found] for side in sides]
    told = [[_share(outcome.told, kind, name) for kind in (*kinds, "hostile")] for name in ends]
    charts = (
        Chart("Right answers", "Held-out questions, put to the desk before the round and after it.", kinds, [*outcome.samples], sampled),
        Chart("Evaluations", "What each round did to held-out questions.", sides, [name for name, _ in found], changed),
        Chart("Conversations", "Who got a right answer.", [*ends.values()], (*kinds, "hostile"), told),
    )
    return [chart for chart in charts if any(measure.num for row in chart.rows for measure in row)]


def _share(told: Sequence[Told], kind: str, name: str) -> Measure:
    return Measure.share(getattr(each, name) for each in told if each.kind == kind)
