"""Turns the phrase tables into shops and support dialogues with known right answers."""

import random
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from backends.mini.corpus import Split, ValueMaker, Values, expand, fill, phrasings, slots, tables
from backends.mini.shop import Language, Passage, Shop, load_shop, quoted, system_message

Kind = Literal["demo", "demo_varied", "made"]
Turn = tuple[str, str]  # role, content
CURRENCIES = {"en": ["$#", "$#", "€#", "£#", "# euros"], "zh": ["# 元", "# 元", "# 美元", "¥#", "# 块"]}
REPEATABLE = ("product", "notice")
# Either of the two answers the other's question, so the other is not missing when one is there.
CLOSE_TOPICS = (
    {"warranty", "damaged"},
    {"warranty", "repair"},
    {"invoice", "contact"},
    {"shipping", "international"},
    {"promo", "loyalty"},
)
# What "a problem with my order" may be about.
ORDER_TOPICS = {"tracking", "cancel", "refunds"}
BEHAVIOURS = {"fact": 46, "followup": 6, "rephrase": 7, "none": 14, "clarify": 5, "fact_inject": 3, "small": 19}
# How often thinking is off. It is the harder way to answer, so it is taught more often than it is asked.
THOUGHTLESS_SHARE: dict[Split, float] = {"train": 0.16, "held": 0.08}
SMALL = {"greeting": 2, "thanks": 2, "bye": 2, "bot": 2, "person": 5, "offtopic": 9, "junk": 4, "insult": 4, "inject": 3, "language": 1}
_TIGHT = re.compile(r"(?<=[\u4e00-\u9fff，。：]) (?=[\d¥])|(?<=[\d%]) (?=[\u4e00-\u9fff])")


@dataclass(frozen=True)
class Example:
    """One assistant turn to learn or to score. `thought` is None when thinking is off; `cited` is 0 when nothing is cited."""

    behaviour: str
    language: Language
    kind: Kind
    shop: Shop
    turns: tuple[Turn, ...]
    thought: str | None
    answers: tuple[str, ...]
    cited: int = 0
    facts: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()  # JSON schemas

    @property
    def system(self) -> str:
        return system_message(self.shop, self.language, self.tools)


@dataclass(frozen=True)
class Entry:
    """A passage with what it was made from."""

    topic: str
    passage: Passage
    template: str
    values: Values


@dataclass(frozen=True)
class Point:
    """One answerable thing: a fact of an entry, `number` being the passage's place in the prompt."""

    number: int
    entry: Entry
    name: str
    fact: dict[str, Any]

    @property
    def about(self) -> str:
        return fill(self.fact["about"], self.entry.values)


def _matched(template: str, text: str) -> Values:
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(template))
    match = re.fullmatch(pattern, text)
    if match is None:
        raise ValueError(f"{text!r} is not {template!r}")
    return match.groupdict()


def demo_entries(language: Language) -> list[Entry]:
    """Read the demo shop's passages back into topics and values. Raises ValueError when a text left its template."""
    topics = tables(language)["topics"]
    return [Entry(p.id, p, topics[p.id]["texts"][0], _matched(topics[p.id]["texts"][0], p.text)) for p in load_shop(language).passages]


@dataclass
class ShopWriter:
    """Makes one shop and dialogues about it. Same `rng` state, same dialogues."""

    rng: random.Random
    language: Language
    split: Split
    max_passages: int = 10
    kind: Kind = "made"
    entries: list[Entry] = field(init=False)
    shop: Shop = field(init=False)
    is_tight: bool = field(init=False, default=False)
    tool_schemas: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        self.maker = ValueMaker(self.language, self.split, self.rng.choice(CURRENCIES[self.language]))
        self.tables = tables(self.language)
        self.is_tight = self.language == "zh" and self.kind != "demo" and self.rng.random() < 0.35
        demo = load_shop(self.language)
        if self.kind == "demo":
            self.entries, self.shop = demo_entries(self.language), demo
            return
        name = demo.name if self.kind == "demo_varied" else self.maker.make(self.rng, ["shop"])["shop"]
        persona = fill(self.rng.choice(self.tables["talk"]["persona"]), {"shop": name})
        self.entries = self._varied() if self.kind == "demo_varied" else self._made()
        self.shop = Shop(name, persona, demo.greeting, demo.suggestions, tuple(entry.passage for entry in self.entries))

    def _varied(self) -> list[Entry]:
        entries = demo_entries(self.language)
        if self.rng.random() < 0.5:
            self.rng.shuffle(entries)
        keep = entries if self.rng.random() < 0.5 else entries[: max(3, self.max_passages - 2)]
        return [self._entry(e.topic, e.passage.title, e.template) for e in keep]

    def _made(self) -> list[Entry]:
        count = self.rng.randint(min(3, self.max_passages), self.max_passages)
        common = [name for name in self.tables["topics"] if name not in REPEATABLE]
        repeated = [self.rng.choice(REPEATABLE) for _ in range(self.rng.choice([0, 0, 0, 1, 2]))][:count]
        chosen = repeated + self.rng.sample(common, count - len(repeated))
        self.rng.shuffle(chosen)
        return [self._entry(name, *(self.rng.choice(self.tables["topics"][name][key]) for key in ("titles", "texts"))) for name in chosen]

    def _entry(self, topic: str, title: str, template: str) -> Entry:
        names = list(dict.fromkeys(slots("".join(self.tables["topics"][topic]["texts"]) + title)))
        values = {name: self._tightened(value) for name, value in self.maker.make(self.rng, names).items()}
        text = self._tightened(fill(template, values))
        if self.kind == "made" and self.rng.random() < 0.04:
            text = f"{text} {self.maker.make(self.rng, ['inject'])['inject']}"
        passage = Passage(topic, fill(title, values), text)
        return Entry(topic, passage, template, values)

    def _tightened(self, text: str) -> str:
        return _TIGHT.sub("", text) if self.is_tight else text

    def points(self) -> list[Point]:
        """Return everything this shop's passages can answer."""
        numbered = enumerate(self.entries, 1)
        return [Point(n, e, name, fact) for n, e in numbered for name, fact in self.tables["topics"][e.topic]["facts"].items()]

    # -- what the customer says

    def _said(self, template: str, values: Values) -> str:
        """Settle a question, wrap it, and now and then misspell it; values keep their letters."""
        question = self._misspelt(expand(self.rng, template))
        talk = self.tables["talk"]
        wrap = expand(self.rng, self._phrasing(talk["wrap"])) if self.rng.random() < 0.75 else "{ask}"
        if wrap.endswith("{ask}") and self.rng.random() < 0.75:
            question += self.rng.choice(talk["end"])
        elif not wrap.endswith("{ask}"):
            question += "?" if self.language == "en" else "，"
        if self.language == "en" and wrap.startswith("{ask}") and self.rng.random() < 0.5:
            question = question[:1].upper() + question[1:]
        text = fill(wrap.replace("{ask}", question), values)
        if self.rng.random() < 0.06:
            text = self._ramble() + text
        case = 1.0 if slots(template) else self.rng.random()
        return text.upper() if case < 0.03 else text.lower() if case < 0.12 else text

    def _misspelt(self, text: str) -> str:
        if self.rng.random() > 0.22:
            return text
        letters = list(text)
        inside = [i for i in range(1, len(letters) - 1) if letters[i].isalpha() and not _in_slot(text, i)]
        for place in sorted(self.rng.sample(inside, min(len(inside), self.rng.choice([1, 1, 2]))), reverse=True):
            match self.rng.randrange(3 if self.language == "en" else 1):
                case 0:
                    del letters[place]
                case 1:
                    letters[place:place] = letters[place]
                case _:
                    letters[place - 1 : place + 1] = (
                        (letters[place], letters[place - 1]) if not _in_slot(text, place - 1) else letters[place - 1 : place + 1]
                    )
        return "".join(letters)

    def _ramble(self) -> str:
        common = self.tables["words"]["common"]
        words = common.split() if self.language == "en" else list(common)
        space, stop = (" ", ". ") if self.language == "en" else ("", "。")
        return space.join(self.rng.choices(words, k=self.rng.randint(5, 30))) + stop

    def _question(self, point: Point) -> str:
        fact = point.fact
        return self._said(self._phrasing(fact["ask"]), point.entry.values)

    def _phrasing(self, pool: list[str]) -> str:
        return self.rng.choice(phrasings(pool, self.split))

    # -- what the assistant says

    def _answers(self, point: Point) -> tuple[str, ...]:
        end = "." if self.language == "en" else "。"
        return tuple(self._tightened(f"{fill(answer, point.entry.values)} [{point.number}]{end}") for answer in point.fact["answer"])

    def _quote(self, point: Point) -> str:
        """Return the cited passage's number and the sentence that holds the fact, letter by letter."""
        sentences = re.findall(r".+?(?:\.(?= |$)|。)", point.entry.passage.text)
        wanted = [point.entry.values[name] for name in slots(point.fact["answer"][0]) if point.entry.values[name] not in point.about]
        grams = {point.fact["answer"][0][i : i + 3] for i in range(len(point.fact["answer"][0]) - 2)}
        best = max(sentences, key=lambda s: (sum(value in s for value in wanted), sum(gram in s for gram in grams)))
        return quoted(point.number, best.strip(), self.language)

    def _example(self, behaviour: str, turns: list[Turn], thought: str, answers: tuple[str, ...], point: Point | None = None) -> Example:
        facts = tuple(point.entry.values[name] for name in slots(point.fact["answer"][0])) if point else ()
        is_thinking = self.rng.random() > THOUGHTLESS_SHARE[self.split]
        return Example(
            behaviour,
            self.language,
            self.kind,
            self.shop,
            tuple(turns),
            thought if is_thinking else None,
            answers,
            point.number if point else 0,
            facts,
            self.tool_schemas,
        )

    def _on_point(self, behaviour: str, turns: list[Turn], point: Point, think: str = "think_fact") -> Example:
        thought = fill(self.tables["talk"][think], {"about": point.about, "quote": self._quote(point)})
        sorry = self.tables["talk"]["sorry"] if think == "think_again" else [""]
        answers = self._answers(point)
        if think == "think_again":
            answers = tuple(re.sub(r"^(I'm sorry, |抱歉，|很抱歉，|非常抱歉，)", "", a) for a in answers)
        answers = tuple(s + a[:1].upper() + a[1:] for a in answers for s in sorry)
        return self._example(behaviour, turns, thought, answers, point)

    # -- behaviours

    def example(self, behaviour: str | None = None) -> Example:
        """Write one dialogue up to and including the assistant turn to learn."""
        name = behaviour or self.rng.choices(list(BEHAVIOURS), list(BEHAVIOURS.values()))[0]
        if name in SMALL:
            return self.small(name)
        made: Example = getattr(self, name)()
        return made

    def _history(self) -> list[Turn]:
        """Return earlier, finished exchanges; most dialogues have none, a few have many."""
        if self.kind == "demo" and self.rng.random() < 0.05:
            return self._in_the_other_language()
        turns: list[Turn] = []
        for _ in range(self.rng.choices([0, 1, 2, 3, 9], [80, 12, 5, 2, 1])[0]):
            earlier = self._on_point("", [], self.rng.choice(self.points()))
            point = next(p for p in self.points() if p.number == earlier.cited)
            if self.rng.random() < 0.25:
                small = self.small("greeting")
                turns += [*small.turns, ("assistant", self.rng.choice(small.answers))]
            else:
                turns += [("user", self._question(point)), ("assistant", self.rng.choice(self._answers(point)))]
        return turns

    def _in_the_other_language(self) -> list[Turn]:
        other = ShopWriter(self.rng, "zh" if self.language == "en" else "en", self.split, kind="demo")
        point = self.rng.choice(other.points())
        return [("user", other._question(point)), ("assistant", self.rng.choice(other._answers(point)))]

    def fact(self) -> Example:
        point = self.rng.choice(self.points())
        return self._on_point("fact", [*self._history(), ("user", self._question(point))], point)

    def fact_inject(self) -> Example:
        point, order = self.rng.choice(self.points()), self.maker.make(self.rng, ["inject"])["inject"]
        parts = [self._question(point), order]
        self.rng.shuffle(parts)
        return self._on_point("fact_inject", [("user", self.rng.choice([" ", "\n"]).join(parts))], point, "think_inject")

    def followup(self) -> Example:
        points = [p for p in self.points() if "follow" in p.fact]
        pairs = [(a, b) for a in points for b in points if a.number == b.number and a.name != b.name]
        if not pairs:
            return self.fact()
        first, second = self.rng.choice(pairs)
        mark = "?" if self.language == "en" else "？"
        question = expand(self.rng, self._phrasing(second.fact["follow"])) + self.rng.choice([mark, mark, ""])
        turns = [("user", self._question(first)), ("assistant", self.rng.choice(self._answers(first))), ("user", question)]
        return self._on_point("followup", turns, second, "think_more")

    def rephrase(self) -> Example:
        wrong, right = self.rng.choice(self.points()), self.rng.choice(self.points())
        if (wrong.number, wrong.name) == (right.number, right.name):
            return self.fact()
        talk = self.tables["talk"]
        chance = self.rng.random()
        if chance < 0.2:  # only that the answer missed: the first question stands
            question = self._misspelt(self._phrasing(talk["complaint"]))
        elif chance < 0.4:
            question = fill(expand(self.rng, self._phrasing(talk["choose"])), {"about": right.about})
            question = ("no, " if self.language == "en" else "不是，") + question
        else:
            again = expand(self.rng, self._phrasing(talk["again"]))
            question = again.replace("{ask}", self._misspelt(expand(self.rng, self._phrasing(right.fact["ask"]))))
        turns = [
            ("user", self._question(right)),
            ("assistant", self.rng.choice(self._answers(wrong))),
            ("user", fill(question, right.entry.values)),
        ]
        return self._on_point("rephrase", turns, right, "think_again")

    def none(self) -> Example:
        """What the shop might well know, but no passage here tells."""
        talk = self.tables["talk"]
        if self.rng.random() < 0.4:
            about, ask = self.rng.choice(self._absent())
            thought = fill(talk["think_none"], {"about": about})
            return self._example("none", [*self._history(), ("user", self._said(ask, {}))], thought, tuple(talk["none"]))
        there = {entry.topic for entry in self.entries}
        close = {name for pair in CLOSE_TOPICS if pair & there for name in pair}
        absent = [name for name in self.tables["topics"] if name in REPEATABLE or name not in there | close]
        topic = self.rng.choice(absent)
        entry = self._entry(topic, self.tables["topics"][topic]["titles"][0], self.tables["topics"][topic]["texts"][0])
        if any(entry.passage.title == passage.title for passage in self.shop.passages):
            return self.fact()
        name, fact = self.rng.choice(list(self.tables["topics"][topic]["facts"].items()))
        point = Point(0, entry, name, fact)
        thought = fill(talk["think_none"], {"about": point.about})
        return self._example("none", [*self._history(), ("user", self._question(point))], thought, tuple(talk["none"]))

    def _absent(self) -> list[tuple[str, str]]:
        asks = {ask: about for about, ask in self.tables["absent"]["items"]}
        return [(asks[ask], ask) for ask in phrasings(list(asks), self.split)]

    def clarify(self) -> Example:
        kind, talk = self.rng.choice(["price", "time", "order"]), self.tables["talk"]
        fitting = [p for p in self.points() if p.fact.get("kind") == kind or (kind == "order" and p.entry.topic in ORDER_TOPICS)]
        points = list({p.number: p for p in reversed(fitting)}.values())[::-1]
        if len(points) < 2:
            return self.fact()
        vague = self._phrasing(talk[f"vague_{kind}"])
        question = ("user", expand(self.rng, vague) + self.rng.choice(["?", ""] if self.language == "en" else ["？", ""]))
        first, second = sorted(points, key=lambda p: p.number)[:2]
        options = {"about": first.about, "other": second.about}
        answers = tuple(fill(answer, options) for answer in talk["clarify"])
        if self.rng.random() < 0.6:
            return self._example("clarify", [question], fill(talk["think_clarify"], options), answers)
        chosen = self.rng.choice([first, second])
        choice = ("user", fill(expand(self.rng, self._phrasing(talk["choose"])), {"about": chosen.about}))
        return self._on_point("clarified", [question, ("assistant", answers[0]), choice], chosen, "think_more")

    def small(self, name: str = "") -> Example:
        """Small talk, refusals, and everything that needs no passage."""
        name = name or self.rng.choices(list(SMALL), list(SMALL.values()))[0]
        table = self.tables["small"][name]
        template = self._phrasing(table["ask"])
        values = {"shop": self.shop.name} | self.maker.make(self.rng, [s for s in slots(template) if s != "shop"])
        text = fill(expand(self.rng, template), values)
        if name in {"offtopic", "person", "insult"}:
            text = self._misspelt(text) + self.rng.choice(["", "", "?" if name == "offtopic" else "!", "."])
        if self.language == "en" and self.rng.random() < 0.4:
            text = text[:1].upper() + text[1:]
        history = self._history() if name in {"thanks", "bye", "person", "offtopic"} else []
        answers = tuple(fill(answer, values) for answer in table["answer"])
        return self._example(name, [*history, ("user", text)], table["think"], answers)


def _in_slot(text: str, place: int) -> bool:
    return text.rfind("{", 0, place + 1) > text.rfind("}", 0, place)
