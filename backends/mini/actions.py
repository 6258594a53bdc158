"""Dialogues in which the assistant has tools: an order looked up, and what changes something only after a yes."""

import json
from dataclasses import dataclass, field
from typing import Any

from backends.mini.corpus import Values, expand, fill, phrasings
from backends.mini.dialogues import Example, Point, ShopWriter, Turn

TOOL_SLOTS = {
    "get_order": ("order",),
    "cancel_order": ("order",),
    "change_address": ("order", "street"),
    "book_callback": ("phone", "time"),
}
# Passages that tell the customer to do by hand what a tool does for them.
OVERLAPPING_TOPICS = {"tracking", "cancel"}
SCHEMA_FIELDS: dict[str, dict[str, str]] = {
    "answer": {"type": "string"},
    "passage": {"type": "integer"},
    "found": {"type": "boolean"},
}


@dataclass(frozen=True)
class Tool:
    """One callable of a shop: which of our actions it is, and the schema the model is shown."""

    action: str
    name: str
    parameters: dict[str, str]  # slot -> parameter name
    schema: dict[str, Any]

    def call(self, values: Values) -> str:
        """Return the call as the model writes it."""
        arguments = {name: values[slot] for slot, name in self.parameters.items()}
        return "<tool_call>\n" + json.dumps({"name": self.name, "arguments": arguments}, ensure_ascii=False) + "\n</tool_call>"


@dataclass
class ActionWriter(ShopWriter):
    """A shop with tools, and dialogues that use them."""

    tools: dict[str, Tool] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = self.rng.sample(list(TOOL_SLOTS), self.rng.choice([1, 2, 3, 4, 4]))
        self.tools = {action: self._tool(action) for action in chosen}
        self.tool_schemas = tuple(json.dumps(tool.schema, ensure_ascii=False) for tool in self.tools.values())

    def _tool(self, action: str) -> Tool:
        table, is_demo = self.tables["actions"], self.kind != "made"
        names, descriptions = table[action]["names"], table[action]["descriptions"]
        parameters = {slot: table["parameters"][slot]["names"] for slot in TOOL_SLOTS[action]}
        chosen = {slot: found[0] if is_demo else self.rng.choice(found) for slot, found in parameters.items()}
        described = {name: {"type": "string", "description": table["parameters"][slot]["description"]} for slot, name in chosen.items()}
        name = names[0] if is_demo else self.rng.choice(names)
        schema = {
            "name": name,
            "description": descriptions[0] if is_demo else self.rng.choice(descriptions),
            "parameters": {"type": "object", "properties": described, "required": list(described)},
        }
        return Tool(action, name, chosen, schema)

    def points(self) -> list[Point]:
        return [point for point in super().points() if point.entry.topic not in OVERLAPPING_TOPICS] or super().points()

    def action(self) -> Example:
        """Write one assistant turn of a dialogue about an order or a call."""
        tool = self.rng.choice(list(self.tools.values()))
        table = self.tables["actions"][tool.action]
        slots = ["order", "street", "phone", "time", "date"]
        values = self.maker.make(self.rng, slots)
        turns = self._request(tool, table, values)
        if isinstance(turns, Example):
            return turns
        if tool.action != "get_order":
            if self.rng.random() < 0.4:
                return self._action("confirm", turns, fill(table["confirm"], values), table["confirm_answer"], values)
            yes = self.rng.random() < 0.8
            agreed = expand(self.rng, self._phrasing(self.tables["actions"]["yes" if yes else "no"]))
            turns = [*turns, ("assistant", fill(table["confirm_answer"][0], values)), ("user", agreed)]
            if not yes:
                return self._action("declined", turns, self.tables["actions"]["think_no"], self.tables["actions"]["kept"], values)
        if self.rng.random() < 0.5:
            return self._action("call", turns, fill(table["call"], values), [tool.call(values)], values)
        return self._result(tool, table, turns, values)

    def _request(self, tool: Tool, table: dict[str, Any], values: Values) -> list[Turn] | Example:
        """Return the customer's side up to where all arguments are known, or the turn that asks for them."""
        actions = self.tables["actions"]
        if self.rng.random() < 0.65:
            return [*self._history(), ("user", self._said(self._phrasing(table["ask"]), values))]
        asked: list[Turn] = [*self._history(), ("user", self._said(self._phrasing(table["bare"]), values))]
        details = actions["details"].get(tool.action) or {
            "think": actions["think_ask_order"], "answer": actions["ask_order"], "give": actions["give_order"],
        }  # fmt: skip
        if self.rng.random() < 0.5:
            return self._action("ask_details", asked, fill(details["think"], {"want": table["want"]}), details["answer"], values)
        given = fill(expand(self.rng, self._phrasing(details["give"])), values)
        return [*asked, ("assistant", details["answer"][0]), ("user", given)]

    def _result(self, tool: Tool, table: dict[str, Any], turns: list[Turn], values: Values) -> Example:
        actions = self.tables["actions"]
        called = [*turns, ("assistant", tool.call(values))]
        chance = self.rng.random()
        if chance < 0.08:
            called.append(("tool", '{"error": "unavailable"}'))
            return self._action("failed", called, actions["think_failed"], actions["failed"], values)
        if chance < 0.2 and "order" in tool.parameters:
            result = json.dumps({tool.parameters["order"]: values["order"], "error": "not found"}, ensure_ascii=False)
            answers = actions["missing_order"]
            return self._action("not_found", [*called, ("tool", result)], fill(actions["think_missing_order"], values), answers, values)
        found = self.rng.choice(list(table["results"].values()))
        result = found["result"]
        for slot, value in values.items():
            result = result.replace("{" + slot + "}", value)
        return self._action("result", [*called, ("tool", result)], fill(found["think"], values), found["answer"], values)

    def _action(self, behaviour: str, turns: list[Turn], thought: str, answers: list[str], values: Values) -> Example:
        written = tuple(answer if answer.startswith("<tool_call>") else fill(answer, values) for answer in answers)
        return self._example(behaviour, turns, thought, written)

    def json_answer(self) -> Example:
        """Write a question whose answer must be JSON of a small schema."""
        point = self.rng.choice(self.points())
        answer = self._answers(point)[0]
        fields = {"answer": answer.split("[")[0].strip(), "passage": point.number, "found": True}
        chosen = self.rng.sample(list(SCHEMA_FIELDS), self.rng.choice([1, 2, 3]))
        schema = {"type": "object", "properties": {name: SCHEMA_FIELDS[name] for name in chosen}, "required": chosen}
        ask = self.rng.choice(phrasings(self.tables["json"]["ask"], self.split))
        question = ask.replace("{schema}", json.dumps(schema, ensure_ascii=False)).replace("{ask}", self._question(point))
        thought = fill(self.tables["talk"]["think_fact"], {"about": point.about, "quote": self._quote(point)})
        written = json.dumps({name: fields[name] for name in chosen}, ensure_ascii=False)
        return self._example("json", [*self._history(), ("user", question)], thought, (written,))

    def example(self, behaviour: str | None = None) -> Example:
        chance = self.rng.random()
        if behaviour is None and chance < 0.6:
            return self.action()
        if behaviour is None and chance < 0.68:
            return self.json_answer()
        return super().example(behaviour)
