"""The raw material of the training dialogues: phrase tables, made-up values, and the line between training and held-out."""

import random
import re
import tomllib
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from backends.mini.shop import Language

Split = Literal["train", "held"]
Values = dict[str, str]

TEXT_FOLDER = Path(__file__).parent / "text"
HELD_SHARE = 5  # one value in five is never trained on
# Where in training any word may stand, so that copying one does not depend on which it is.
ANY_WORD, ANY_WORD_SHARE = {"material", "room", "country"}, 0.4
SPLIT_FREE = {"weekday", "month", "pay", "noun", "noun2", "pct", "junk", "junk2", "inject"}
_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
_SLOT = re.compile(r"\{(\w+)\}")


@cache
def tables(language: Language) -> dict[str, Any]:
    """Return the phrase tables of one language: `topics`, `absent`, `talk`, `small`, `actions` and `words`."""
    return tomllib.loads((TEXT_FOLDER / f"{language}.toml").read_text(encoding="utf-8"))


def split_of(value: str) -> Split:
    """Say on which side of the line a value stands; the answer depends on its letters alone."""
    return "held" if zlib.crc32(value.encode()) % HELD_SHARE == 0 else "train"


def phrasings(pool: list[str], split: Split) -> list[str]:
    """Return one side of a list of phrasings: a sixth of each list, at least one, is never trained on. A single one is on both sides."""
    return _parted(tuple(pool))[split]


@cache
def _parted(pool: tuple[str, ...]) -> dict[Split, list[str]]:
    ranked = sorted(pool, key=lambda phrasing: zlib.crc32(phrasing.encode()))
    count = max(1, len(ranked) // 6)
    return {"held": ranked[:count], "train": ranked[count:] or ranked}


def slots(template: str) -> list[str]:
    """Return the slot names of a template, in order."""
    return _SLOT.findall(template)


def expand(rng: random.Random, template: str) -> str:
    """Settle every (a|b|) choice of a template; slots stay."""
    while match := _CHOICE.search(template):
        template = template[: match.start()] + rng.choice(match[1].split("|")) + template[match.end() :]
    return re.sub(r" +", " ", template).strip()


def fill(template: str, values: Values) -> str:
    """Put values into the slots. Raises KeyError for a slot without a value."""
    return _SLOT.sub(lambda match: values[match[1]], template)


def _made_up(rng: random.Random) -> str:
    syllables = (
        rng.choice("bcdfghjklmnprstvwz") + rng.choice(["a", "e", "i", "o", "u", "ar", "en", "il", "or", "an"])
        for _ in range(rng.randint(2, 3))
    )
    return "".join(syllables).capitalize()


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=rng.randint(2, 5)))
    digits = "".join(rng.choices("0123456789", k=rng.randint(2, 5)))
    return letters + rng.choice(["-", "", "-"]) + digits


def _order(rng: random.Random) -> str:
    letters = "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=rng.randint(1, 3)))
    digits = "".join(rng.choices("0123456789", k=rng.randint(4, 7)))
    return rng.choice([f"{letters}-{digits}", f"{letters}{digits}", digits, f"QK-{digits}"])


@dataclass(frozen=True)
class ValueMaker:
    """Makes values for slots by their kind (the slot's name without its number), all on one side of the split."""

    language: Language
    split: Split
    currency: str

    def make(self, rng: random.Random, names: list[str]) -> Values:
        """Return a value for each slot name; no two slots share one."""
        values: Values = {}
        for name in names:
            kind = name.rstrip("0123456789")
            for _ in range(200):
                value = self._one(rng, kind, name)
                if value not in values.values() and (name in SPLIT_FREE or split_of(value) == self.split):
                    break
            values[name] = value
        return values

    def _one(self, rng: random.Random, kind: str, name: str) -> str:
        ranges = {"days": (3, 120), "wd": (1, 21), "hrs": (1, 96), "months": (2, 72), "pct": (3, 75), "num": (2, 900)}
        if kind in ranges:
            return str(rng.randint(*ranges[kind]))
        if kind in {"material", "room", "country", "weekday", "noun"}:
            if self.split == "train" and kind in ANY_WORD and rng.random() < ANY_WORD_SHARE:
                return self._any_word(rng)
            return str(rng.choice(tables(self.language)["words"][kind]))
        if kind == "time":
            hour = rng.randint(16, 22) if name in {"time2", "time4"} else rng.randint(6, 12)
            return f"{hour}:{rng.choice(['00', '15', '30', '45', '10', '20', '40', '50'])}"
        maker = {
            "price": self._price, "pay": self._pay, "code": _code, "email": self._email, "phone": self._phone, "street": self._street,
            "person": self._person, "product": self._product, "word": self._word, "date": self._date, "shop": self._shop, "city": _made_up,
            "junk": self._junk, "order": _order, "inject": self._inject,
        }[kind]  # fmt: skip
        return maker(rng)

    def _any_word(self, rng: random.Random) -> str:
        common: str = tables(self.language)["words"]["common"]
        return "".join(rng.sample(common, 2)) if self.language == "zh" else rng.choice(common.split())

    def _price(self, rng: random.Random) -> str:
        amount = rng.choice(
            [f"{rng.randint(1, 99)}.{rng.randint(0, 99):02d}", f"{rng.randint(1, 99)}.{rng.randint(0, 9)}0", str(rng.randint(2, 900))]
        )
        return self.currency.replace("#", amount)

    def _pay(self, rng: random.Random) -> str:
        names: list[str] = rng.sample(tables(self.language)["words"]["pay"], rng.randint(2, 5))
        comma, last = (", ", " and ") if self.language == "en" else ("、", " 和 " if names[-1].isascii() else "和")
        return comma.join(names[:-1]) + last + names[-1]

    def _email(self, rng: random.Random) -> str:
        user = rng.choice(["care", "hello", "help", "info", "service", "shop", "team", "desk", _made_up(rng).lower()])
        return f"{user}@{_made_up(rng).lower()}{rng.choice(['', _made_up(rng).lower()])}.example"

    def _phone(self, rng: random.Random) -> str:
        return (
            rng.choice(["555-", "", f"0{rng.randint(10, 99)}-"])
            + str(rng.randint(1000, 9999))
            + rng.choice(["", f" {rng.randint(100, 999)}", f"-{rng.randint(10, 99)}"])
        )

    def _street(self, rng: random.Random) -> str:
        if self.language == "zh" and rng.random() < 0.65:
            return (
                "".join(rng.sample("金银长春和平安宁东南西北新华文化海江湖山泉林", 2))
                + f"{rng.choice(tables('zh')['words']['road'])} {rng.randint(1, 399)} 号"
            )
        return f"{rng.randint(1, 399)} {_made_up(rng)} {rng.choice(tables('en')['words']['road'])}" + rng.choice(["", f", {_made_up(rng)}"])

    def _person(self, rng: random.Random) -> str:
        if self.language == "zh" and rng.random() < 0.85:
            return rng.choice("王李张刘陈杨赵黄周吴徐孙朱马胡林郭何高罗") + "".join(
                rng.sample("伟芳娜敏静丽强磊军洋勇艳杰娟涛明超秀霞平刚桂文辉玲", rng.randint(1, 2))
            )
        return _made_up(rng) + rng.choice(["", f" {_made_up(rng)}"])

    def _product(self, rng: random.Random) -> str:
        words = tables(self.language)["words"]
        if self.language == "zh":
            return "".join(rng.sample(words["product"], 2)) + str(rng.choice(words["thing"]))
        return f"{rng.choice([rng.choice(words['product']), _made_up(rng)])} {rng.choice(words['thing'])}"

    def _word(self, rng: random.Random) -> str:
        if self.language == "zh":
            return self._any_word(rng)
        return rng.choice([_made_up(rng), self._any_word(rng).capitalize()])

    def _date(self, rng: random.Random) -> str:
        month, day = rng.choice(tables(self.language)["words"]["month"]), rng.randint(1, 28)
        return f"{day} {month}" if self.language == "en" else f"{month} {day} 日"

    def _shop(self, rng: random.Random) -> str:
        words = tables(self.language)["words"]
        if self.language == "zh":
            return "".join(rng.sample(words["product"], 2)) + str(rng.choice(words["shop_end"]))
        return f"{rng.choice([_made_up(rng), rng.choice(words['product'])])} {rng.choice(words['shop_end'])}"

    def _junk(self, rng: random.Random) -> str:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789.,!?;:#*~😀🎉🔥éüñßжλあ한", k=rng.randint(2, 9)))

    def _inject(self, rng: random.Random) -> str:
        talk = tables(self.language)["talk"]
        return fill(rng.choice(phrasings(talk["inject"], self.split)), {"pct": str(rng.randint(10, 90))})
