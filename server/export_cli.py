"""`kefu export`: what was learnt from customers, as files that trainers load."""

import asyncio
import re
import secrets
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from backends.fit import this_machine
from backends.mini.shop import Language, load_shop, passage_line, system_message
from server.agent_cli import HEAD_FILE
from server.desk.checks import Evidence, check
from server.desk.policy_file import DEMO, Terms, load_policy
from server.desk.quantities import Kind as QuantityKind
from server.models import choose
from server.settings import Settings, load_settings

if TYPE_CHECKING:
    from backends.protocol import Tokenizer
    from feedback.pairs import Case, Gates, Turn
    from feedback.writers import Json, Rendering, Shop

SALT_FILE = "split.salt"
out = Console(highlight=False, soft_wrap=True, markup=False)


class ExportFailed(Exception):
    """Nothing was written; the message is one sentence."""


def export(
    folder: Annotated[Path | None, typer.Argument(help="Where the export's own folder is made; else `export` in the data folder.")] = None,
    order: Annotated[list[str] | None, typer.Option(help="A regular expression of the shop's order numbers; may be repeated.")] = None,
    regenerate: Annotated[str, typer.Option(help="A running kefu (http://...): let it answer anew where no answer stands alone.")] = "",
    judge: Annotated[
        str, typer.Option(metavar="URL", help="A model (http://...) that chooses among new answers that are equally right.")
    ] = "",
    without_redaction: Annotated[bool, typer.Option("--without-redaction", help="Leave personal data in. The audit log keeps it.")] = False,
) -> None:
    """Write what customers agreed to share as preference data, without their personal data. Nothing is sent anywhere."""
    settings = load_settings()
    try:
        orders = tuple(re.compile(each) for each in order or ())
    except re.error as error:
        raise typer.BadParameter(f"--order is no regular expression: {error}") from error
    written, manifest = asyncio.run(
        _export(settings, folder or settings.data_dir / "export", orders, (regenerate, judge), not without_redaction)
    )
    _show(written, manifest)


async def _export(
    settings: Settings, folder: Path, orders: Sequence[re.Pattern[str]], urls: tuple[str, str], is_redacted: bool
) -> "tuple[Path, Json]":
    # The database takes a second to import; other commands do not wait for it.
    from feedback.audit import Audit
    from feedback.database import Database, RecordUnavailable
    from feedback.export import Rules, read_snapshot, select_examples
    from feedback.judge import ModelJudge, ModelServer
    from feedback.redact import find
    from feedback.regenerate import regenerate
    from feedback.review import Reviews
    from feedback.writers import turns_of, write_export

    terms = load_policy(settings.desk.policy or DEMO)
    gates, shop = make_gates(terms), make_shop(settings, terms)
    # The shop's own telephone and e-mail are nobody's secret.
    public = {one.value for each in terms.values() for fact in (*each.facts, *each.promises) for one in find(fact)}
    rules = Rules(_salt(settings.data_dir), orders, public, is_redacted)
    with Progress(console=out, transient=True) as progress:
        task = progress.add_task("reading", total=6)

        def step(name: str) -> None:
            progress.update(task, description=name, advance=1)

        try:
            with closing(Database.open(settings.database_url, settings.data_dir)) as database:
                snapshot = await database.read(lambda connection: read_snapshot(connection, gates))
                if urls[0]:
                    step("asking for new answers")
                    judge, server = ModelJudge(urls[1]) if urls[1] else None, ModelServer(urls[0])

                    async def ask(turns: "Sequence[Turn]", count: int) -> list[str]:
                        return await asyncio.to_thread(server.complete, [turn.message for turn in turns], n=count)

                    rows = await regenerate(snapshot.rows, ask, gates, lambda case: turns_of(case, shop), judge)
                    snapshot = replace(snapshot, rows=rows)
                await Reviews(database).offer(snapshot.rows)
                selection = select_examples(snapshot, rules, step)
                action = "export" if is_redacted else "export_without_redaction"
                detail: dict[str, object] = {"rows": len(selection.examples)}
                await Audit(database, settings.data_dir / HEAD_FILE).write("command line", action, str(folder), detail)
        except RecordUnavailable as error:
            raise ExportFailed(str(error)) from error
        step("writing")
        return write_export(selection, snapshot.made, shop, rules, folder)


def make_gates(terms: dict[Language, Terms]) -> "Gates":
    """The policy's checks as the desk makes them."""
    from feedback.pairs import Gates

    def violations(answer: str, case: "Case") -> list[str]:
        one = terms[_language(case)]
        stated = (*(f"{each.title}: {each.text}" for each in case.passages), *one.facts)
        found = check(answer, Evidence(stated, one.promises, (), tuple(turn.content for turn in case.turns)), one.rules, _language(case))
        return ["numbers" if each.kind in get_args(QuantityKind) else each.kind for each in found]

    return Gates(violations, lambda case: "handoff" if terms[_language(case)].handover_reason(case.question) else None)


def make_shop(settings: Settings, terms: dict[Language, Terms]) -> "Shop":
    """The system message with the passages an answer saw, under the numbers they had."""
    from feedback.writers import Shop

    def system(case: "Case") -> str:
        language = _language(case)
        bare = replace(load_shop(language), persona=terms[language].persona, passages=())
        lines = (passage_line(each.number, each.title, each.text, language) for each in case.passages)
        return "\n".join([system_message(bare, language), *lines])

    never: dict[str, list[str]] = {language: list(getattr(terms[language].file.must_not_say, language)) for language in terms}
    return Shop(system, lambda language: never.get(language, []), _rendering(settings))


class _Template:
    """The model's own template, for training files."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        from server.chat.template import ChatTemplate

        self._tokenizer, self._template = tokenizer, ChatTemplate(tokenizer)
        self.end, self.specials = tokenizer.eos_text, tokenizer.special_texts()

    def prompt(self, turns: "Sequence[Turn]") -> str:
        from server.chat.template import ChatMessage

        return self._template.text([ChatMessage(turn.role, turn.content) for turn in turns])

    def tokens(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=True)


def _rendering(settings: Settings) -> "Rendering | None":
    from backends.protocol import ModelLoadError
    from backends.registry import make_tokenizer
    from server.app import BUILT_IN

    if settings.upstream.base_url:
        return None
    model = choose(settings, this_machine(settings.engine.memory_gib)).engine.model or BUILT_IN
    try:
        return _Template(make_tokenizer(str(model)))
    except ModelLoadError as error:
        raise ExportFailed(str(error)) from error


def _language(case: "Case") -> Language:
    return "zh" if case.language == "zh" else "en"


def _salt(data_dir: Path) -> str:
    """Decides who is in the held-out part, the same for every export of this shop."""
    path = data_dir / SALT_FILE
    if not path.exists():
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(16), encoding="ascii")
        path.chmod(0o600)
    return path.read_text(encoding="ascii").strip()


def _show(written: Path, manifest: "Json") -> None:
    counts, dropped = manifest["counts"], manifest["dropped"]
    assert isinstance(counts, dict) and isinstance(dropped, dict)
    table = Table("rows", "train", "valid", title=f"export {manifest['snapshot']}")
    for kind, what in (("dpo", "better and worse"), ("kto", "good or bad"), ("sft", "a person's answers"), ("grpo", "with a known answer")):
        table.add_row(f"{kind}: {what}", str(counts.get(f"{kind} train", 0)), str(counts.get(f"{kind} valid", 0)))
    out.print(table)
    if dropped:
        out.print("left out: " + ", ".join(f"{count} {reason}" for reason, count in dropped.items()))
    if missing := manifest["not_enough"]:
        assert isinstance(missing, list)
        out.print(f"not enough data yet: {'; '.join(missing)}. Keep serving; what is there was written.")
    out.print(f"written to {written}")
