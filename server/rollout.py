"""Rounds in a running server: who talks to which adapter, and the canary that is taken back by itself."""

import asyncio
import fcntl
import logging
from dataclasses import replace
from pathlib import Path

from backends.supervisor import Supervisor
from feedback.audit import Audit
from feedback.database import RecordUnavailable
from feedback.rounds import Rounds, red_line
from feedback.training.job import LOADED, RoundRefused, Serving, asked_for
from server.chat.service import ChatService

log = logging.getLogger("kefu.rounds")
LOOK_EVERY_S = 1.0
PAUSED = "a round of training has this machine's memory; answers go on when it ends"


async def watch_rounds(chat: ChatService, rounds: Rounds, audit: Audit, unless: str) -> None:
    """Follow the registry: within a second, new answers come from what is live there, or from the adapter `unless` when nothing is."""
    while True:
        try:
            await follow(chat, rounds, audit, unless)
        except (RecordUnavailable, RoundRefused) as error:
            log.warning("the adapters stay as they are: %s", error)
        await asyncio.sleep(LOOK_EVERY_S)


async def follow(chat: ChatService, rounds: Rounds, audit: Audit, unless: str) -> None:
    """One look. A canary over a red line is rolled back."""
    live, canary = await rounds.serving()
    if canary and (crossed := red_line(*await rounds.arms(canary))):
        log.error("%s is taken back: %s", canary.id, crossed)
        await rounds.rollback(crossed, canary.id)
        await audit.write("system", "round_rolled_back", canary.id, {"reason": crossed})
        canary = None
    share, name = (canary.share, canary.id) if canary else (0.0, "")
    chosen = replace(chat.adapters, chosen=live.id if live else unless, canary=name, share=share, salt=name)
    if chosen != chat.adapters:
        log.info("customers talk to %s", " and ".join(filter(None, (chosen.chosen or "the model itself", name))))
        chat.adapters = chosen


async def watch_training(chat: ChatService, supervisor: Supervisor, data_dir: Path) -> None:
    """Do for the rounds in training on this machine what they ask for, and serve as ever when the last has ended, however it ended."""
    now: Serving = "run"
    with (data_dir / LOADED).open("a") as loaded:
        fcntl.flock(loaded, fcntl.LOCK_SH)
        while True:
            if (asked := asked_for(data_dir)) != now:
                log.info("rounds in training ask to %s", asked)
            chat.is_throttled = asked == "throttle"
            if asked == "pause" != now:
                await supervisor.pause(PAUSED)
                fcntl.flock(loaded, fcntl.LOCK_UN)
            elif now == "pause" != asked:
                fcntl.flock(loaded, fcntl.LOCK_SH)
                await supervisor.resume()
            now = asked
            await asyncio.sleep(LOOK_EVERY_S)
