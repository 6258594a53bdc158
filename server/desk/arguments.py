"""Arguments of tools, held to their JSON Schema before anything is called."""

from collections.abc import Mapping

from backends.constraint import fits, schema_fault

JsonObject = dict[str, object]
MAX_DEPTH = 12
__all__ = ["JsonObject", "inlined", "members", "mismatch", "schema_fault"]


def inlined(schema: object, root: Mapping[str, object], depth: int = 0) -> object:
    """The schema with what its `$ref`s name in `root` in their place. Raises ValueError."""
    if depth > MAX_DEPTH:
        raise ValueError("a schema refers to itself, or is too deep")
    if isinstance(schema, list):
        return [inlined(each, root, depth + 1) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(ref := schema.get("$ref"), str):
        found: object = root
        for part in ref.removeprefix("#/").split("/"):
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is None:
            raise ValueError(f"a schema refers to {ref}, which is not there")
        return inlined(found, root, depth + 1)
    return {name: inlined(each, root, depth + 1) for name, each in schema.items() if name != "$defs"}


def mismatch(arguments: Mapping[str, object], schema: JsonObject) -> str:
    """What is wrong with a call's arguments, in words that do not repeat them; empty when they fit."""
    required = schema.get("required")
    if missing := [name for name in (required if isinstance(required, list) else []) if name not in arguments]:
        return f"{missing[0]} is missing"
    return "" if fits(schema, _ordered(arguments, schema)) else "the arguments do not fit the tool's schema"


def members(schema: object, name: str = "properties") -> dict[str, object]:
    """A part of a schema that is a table; empty when it is not there."""
    found = schema.get(name) if isinstance(schema, Mapping) else None
    return found if isinstance(found, dict) else {}


def _ordered(value: object, schema: object) -> object:
    """With its names in the schema's order, which JSON does not care for and the validator does."""
    if isinstance(value, list):
        return [_ordered(each, members(schema, "items")) for each in value]
    if not isinstance(value, dict):
        return value
    known = members(schema)
    names = [*(name for name in known if name in value), *(name for name in value if name not in known)]
    return {name: _ordered(value[name], known.get(name)) for name in names}
