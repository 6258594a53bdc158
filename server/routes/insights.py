"""The console's overview: how the desk does, by week or by adapter."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from feedback.accounts import Agent
from feedback.insights import By, Insights, Measure, Slice
from server.console.charts import Drawing, draw_counts, draw_measures
from server.console.console import Console

Unit = Literal["share", "seconds", "tokens"]


@dataclass(frozen=True, slots=True)
class Card:
    """One idea: fields of Slice with their intervals; what is drawn are these, or `counts`. The words are console_insights_{name}."""

    name: str
    unit: Unit
    series: tuple[str, ...]
    counts: tuple[str, ...] = ()

    def has_data(self, whole: Slice) -> bool:
        return bool(getattr(whole, self.series[0]).num or sum(whole.counts[name] for name in self.counts))

    def draw(self, slices: list[Slice], by: By) -> Drawing:
        if self.counts:
            return draw_counts([[each.counts[name] for each in slices] for name in self.counts])
        return draw_measures([[getattr(each, name) for each in slices] for name in self.series], by)


CARDS = (
    Card("containment", "share", ("contained",)),
    Card("resolution", "share", ("confirmed", "assumed", "reopened")),
    Card("again", "share", ("asked_again",)),
    Card("csat", "share", ("content", "rated")),
    Card("waiting", "seconds", ("first_answer_s", "first_answer_p95_s")),
    Card("thinking", "tokens", ("thought_tokens", "thought_p95_tokens")),
    Card("knowledge", "share", ("unanswered",), ("gaps",)),
    Card("votes", "share", ("liked",), ("up", "quarantined", "down")),
)


def insights_router(console: Console, insights: Insights) -> APIRouter:
    """/console/insights, for editors."""
    router = APIRouter(prefix="/console", include_in_schema=False)
    editor = Annotated[Agent, Depends(console.require_role("editor"))]

    @router.get("/insights", tags=["editor"])
    async def overview(request: Request, me: editor, by: By = "week", weeks: Annotated[int, Query(ge=1, le=104)] = 12) -> Response:
        found = await insights.overview(weeks, by)
        cards = [(card, card.draw(found.slices, by)) for card in CARDS] if found.slices else []
        words = {"say": say, "say_interval": say_interval}
        return console.render(request, "insights.html", 200, **words, found=found, cards=cards, by=by, weeks=weeks)

    return router


def say(value: float, unit: Unit | None) -> str:
    """Shares as percentages, seconds, or a whole number."""
    if unit == "share":
        return f"{100 * value:.0f}%"
    return f"{round(value, 1):g} s" if unit == "seconds" else f"{value:,.0f}"


def say_interval(measure: Measure, unit: Unit) -> str:
    return f"{say(measure.low, unit)} – {say(measure.high, unit)}, n = {measure.num:,}"
