"""The settings in force, as a page may show them: no secret leaves."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel, SecretStr

from server.settings import PREFIX, Settings, SiteSettings

HIDDEN = "•••"


@dataclass(frozen=True, slots=True)
class Shown:
    """One setting: what it is called in kefu.toml and in the environment, its value in words, and whether that is not the default."""

    name: str
    variable: str
    value: str
    is_changed: bool
    description: str


def shown_settings(settings: Settings) -> list[Shown]:
    return list(_walk(settings, ""))


def toml_of_site(name: str, site: SiteSettings) -> str:
    """The lines of kefu.toml that set this up, without its keys: they are secrets. JSON's strings and lists are TOML's."""
    changed = site.model_dump(mode="json", exclude_defaults=True, exclude={"keys"})
    return "\n".join([f"[sites.{name}]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in changed.items())])


def _walk(branch: BaseModel, prefix: str) -> Iterator[Shown]:
    for name, field in type(branch).model_fields.items():
        value, full = getattr(branch, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from _walk(value, f"{full}.")
        else:
            variable = PREFIX + full.upper().replace(".", "__")
            hides = isinstance(value, SecretStr) or not field.repr or "key" in name
            shown = (HIDDEN if _words(value) else "") if hides else _words(value)
            yield Shown(full, variable, shown, value != field.default, field.description or "")


def _words(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple | dict):
        return ", ".join(value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
