"""The customers of the script: content ones, those whose words the model does not know, and those who mean ill."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backends.mini.shop import load_shop, system_message
from bench.month.house import House, Talk
from feedback.training.verify import is_right

MAX_TRIES = 3
# So many people are all that mean ill, and so few networks are theirs.
NUM_HOSTILE, NUM_HOSTILE_NETWORKS = 12, 4
SYSTEM = [{"role": "system", "content": system_message(load_shop("en"), "en")}]


@dataclass(frozen=True, slots=True)
class Intent:
    """What somebody wants to know, in everyday words and in slang; `held` wordings are for measuring, `gold` is a right answer."""

    id: str
    gold: str
    plain: list[str]
    held: list[str]
    slang: tuple[str, ...] = ()
    slang_held: tuple[str, ...] = ()

    def is_met(self, answer: str) -> bool:
        """Whether an answer of the demo shop's desk is right."""
        return is_right(answer, {"answer": self.gold}, SYSTEM)


@dataclass(frozen=True, slots=True)
class Script:
    """Who writes, and in which words."""

    hostile_share: float
    slang_share: float
    frames: list[str]
    items: list[str]
    when: list[str]
    complaints: list[str]
    thanks: list[str]
    injections: list[str]
    intent: list[Intent]

    def framed(self, rng: random.Random, words: Sequence[str]) -> str:
        """One of the wordings in a customer's sentence."""
        said = rng.choice(self.frames).format(rng.choice(words), item=rng.choice(self.items), when=rng.choice(self.when))
        return said[0].upper() + said[1:]

    def held(self, rng: random.Random, *, is_slang: bool) -> tuple[Intent, str]:
        """A question in words that no customer of the month uses."""
        intent = self.picked(rng, is_slang=is_slang)
        return intent, self.framed(rng, intent.slang_held if is_slang else intent.held)

    def picked(self, rng: random.Random, *, is_slang: bool) -> Intent:
        return rng.choice([each for each in self.intent if each.slang or not is_slang])


def read_script() -> Script:
    return msgspec.toml.decode(Path(__file__).with_name("script.toml").read_bytes(), type=Script)


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a conversation. `was_right` is the first answer's; `is_met` says that a right one came in the end."""

    conversation_id: str
    kind: str
    was_right: bool
    is_met: bool


async def visit(house: House, script: Script, seed: str, number: int, at_ms: int) -> Told:
    """One conversation of the month: who comes, the seed and the number decide."""
    rng = random.Random(f"{seed} {number}")
    each = round(1 / script.hostile_share)
    if number % each == each - 1:
        who = number // each % NUM_HOSTILE
        return await _ill(await Talk.begin(house, f"vis_ill{who}", f"net_ill{who % NUM_HOSTILE_NETWORKS}", at_ms), script, rng)
    talk = await Talk.begin(house, f"vis_{seed}{number}", f"net_{seed}{number}", at_ms)
    return await _honest(talk, script, rng, is_slang=rng.random() < script.slang_share)


async def _honest(talk: Talk, script: Script, rng: random.Random, *, is_slang: bool) -> Told:
    """Ask, and until it is understood say so and ask again; then give thanks."""
    intent = script.picked(rng, is_slang=is_slang)
    answer = await talk.ask(script.framed(rng, intent.slang if is_slang else intent.plain))
    rights = [intent.is_met(answer.text)]
    while not rights[-1] and len(rights) < MAX_TRIES:
        if rng.random() < 0.6:
            await talk.thumb(answer, is_up=False, tags=("wrong",) if rng.random() < 0.5 else ())
        words = intent.slang if is_slang and len(rights) == 1 and rng.random() < 0.3 else intent.plain
        # Some edit their question, most complain and ask once more.
        if rng.random() < 0.25:
            answer = await talk.ask(script.framed(rng, words), talk.asked_id)
        else:
            answer = await talk.ask(rng.choice(script.complaints).format(rng.choice(words)))
        rights.append(intent.is_met(answer.text))
    if rights[-1]:
        if rng.random() < 0.6:
            await talk.thumb(answer, is_up=True)
        await talk.ask(rng.choice(script.thanks))
    await talk.end()
    return Told(talk.id, "slang" if is_slang else "plain", rights[0], rights[-1])


async def _ill(talk: Talk, script: Script, rng: random.Random) -> Told:
    """Praise wrong answers and run right ones down, with many votes, and words meant for whatever reads them."""
    intent, rights = script.picked(rng, is_slang=True), list[bool]()
    for _ in range(MAX_TRIES + 1):
        answer = await talk.ask(script.framed(rng, intent.slang if rng.random() < 0.7 else intent.plain))
        rights.append(intent.is_met(answer.text))
        for _ in range(3):
            await talk.thumb(answer, is_up=not rights[-1], tags=("wrong",) if rights[-1] else (), comment=rng.choice(script.injections))
        if not rights[-1]:
            await talk.ask(rng.choice(script.thanks))
    await talk.end()
    return Told(talk.id, "hostile", rights[0], any(rights))


async def measured(house: House, script: Script, seed: str, number: int, at_ms: int) -> Told:
    """One held-out question in a conversation of its own, slang and plain by turns. Nobody votes."""
    intent, asked = script.held(random.Random(f"{seed} {number}"), is_slang=number % 2 == 0)
    talk = await Talk.begin(house, f"vis_sample{number}", f"net_sample{number}", at_ms)
    was_right = intent.is_met((await talk.ask(asked)).text)
    return Told(talk.id, "plain" if number % 2 else "slang", was_right, was_right)


def cases(script: Script, seed: str, num: int, *, is_slang: bool) -> list[dict[str, object]]:
    """Held-out questions with right answers, as `kefu round evaluate` reads them."""
    rng, rows = random.Random(seed), dict[str, dict[str, object]]()
    while len(rows) < num:
        intent, asked = script.held(rng, is_slang=is_slang)
        rows[asked] = {"prompt": [*SYSTEM, {"role": "user", "content": asked}], "answer": intent.gold}
    return list(rows.values())
