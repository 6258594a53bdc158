"""What each round of training changed, for editors: its numbers before and after, and answers that got better or worse."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from feedback.evaluation import Interval, Metrics, objections, read_changes
from feedback.rounds import RED_LINES, Round, Rounds, State, red_line
from feedback.training.job import RoundRefused
from server.console.console import Console
from server.errors import NotFound

# What comes next, on the terminal: a page moves no round.
COMMANDS: Mapping[State, tuple[str, ...]] = {
    "training": ("kefu round resume {name}",),
    "candidate": ("kefu round evaluate {name}", "kefu round promote {name} --share 0.1"),
    "canary": ("kefu round promote {name} --share 1", "kefu round rollback"),
    "live": ("kefu round rollback",),
    "retired": ("kefu round evaluate {name}", "kefu round promote {name} --share 0.1"),
    "stale_erased": ("kefu export", "kefu round start --data EXPORT"),
}


def rounds_router(console: Console, rounds: Rounds, data_dir: Path) -> APIRouter:
    """/console/rounds and /console/rounds/{name}."""
    router = APIRouter(prefix="/console", tags=["editor"], include_in_schema=False, dependencies=[Depends(console.require_role("editor"))])

    @router.get("/rounds")
    async def overview(request: Request) -> Response:
        _, canary = await rounds.serving()
        crossed = red_line(*await rounds.arms(canary)) if canary else ""
        return console.render(request, "rounds.html", found=await rounds.all(), crossed=crossed)

    @router.get("/rounds/{name}")
    async def one(request: Request, name: str) -> Response:
        try:
            found = await rounds.get(name)
        except RoundRefused as error:
            raise NotFound("there is no such round") from error
        metrics, (_, canary) = msgspec.convert(found.metrics, Metrics), await rounds.serving()
        arms = await rounds.arms(found) if canary and canary.id == found.id else ()
        say = {"points": points, "share": share, "against": partial(objections, metrics)}
        told = {"arms": arms, "crossed": bool(arms and red_line(*arms)), "lines": RED_LINES}
        more = {"commands": _commands(found, canary), "changes": read_changes(data_dir, found.id)}
        return console.render(request, "round.html", 200, one=found, metrics=metrics, **say, **told, **more)

    return router


def _commands(found: Round, canary: Round | None) -> list[str]:
    """Rolling back takes the canary first: of what is live it is the next step only without one."""
    if found.job.get("method") == "reward" and found.state == "candidate":
        return [f"kefu round evaluate {found.id}", f"kefu round start --data EXPORT --method grpo --reward-model {found.id}"]
    is_behind = found.state == "live" and canary is not None
    return [] if is_behind else [line.format(name=found.id) for line in COMMANDS[found.state]]


def share(value: Interval) -> str:
    return f"{100 * value[0]:.1f}% ({100 * value[1]:.0f} – {100 * value[2]:.0f})"


def points(value: Interval) -> str:
    """A difference of shares, in percentage points."""
    return f"{100 * value[0]:+.1f} ({100 * value[1]:+.0f} … {100 * value[2]:+.0f})".replace("-", "−")
