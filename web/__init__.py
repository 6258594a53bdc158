"""What people see: page templates, styles, scripts, and every word on screen in each language."""

import hashlib
import json
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent
TEMPLATES = ROOT / "templates"
# One file a language; the first is what a reader of none of them gets.
LANGUAGES = ("en", *sorted(path.stem for path in (ROOT / "i18n").glob("*.json") if path.stem != "en"))


@dataclass(frozen=True, slots=True)
class StaticFile:
    content: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Assets:
    """Everything under static/, read once. `version` changes when any byte of it does, so a versioned URL never goes stale."""

    files: Mapping[str, StaticFile]
    version: str


def load_assets() -> Assets:
    """Read static/. The keys are relative paths with forward slashes: "css/page.css"."""
    folder = ROOT / "static"
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): StaticFile(path.read_bytes(), _media_type(path)) for path in paths}
    files["widget.js"] = replace(files["widget.js"], content=_with_words(files["widget.js"].content))
    digest = hashlib.sha256()
    for name, file in files.items():
        digest.update(f"{name}\0{len(file.content)}\0".encode() + file.content)
    return Assets(files, digest.hexdigest()[:16])


def load_strings() -> dict[str, dict[str, str]]:
    """Return language -> key -> words."""
    return {language: json.loads((ROOT / "i18n" / f"{language}.json").read_text(encoding="utf-8")) for language in LANGUAGES}


def _with_words(widget: bytes) -> bytes:
    """The widget is one file on other people's pages: it carries its few words in every language."""
    words = {language: {key: said for key, said in all.items() if key.startswith("widget_")} for language, all in load_strings().items()}
    return widget.replace(b"const WORDS = {};", f"const WORDS = {json.dumps(words, ensure_ascii=False)};".encode())


def _media_type(path: Path) -> str:
    # The machine's own tables differ (some call .js text/plain, and nosniff then refuses it).
    known = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    return known.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
