"""Which model is served: the settings' word for it, looked up among files and the catalogue, and checked against this machine."""

from dataclasses import dataclass
from pathlib import Path

from backends.catalog import Entry, Format, catalog, find
from backends.fit import KV_BYTES, MIN_TOKENS, Fit, Machine
from backends.sequence import SamplingParams
from backends.store import Store
from server.settings import EngineSettings, Settings

# How many full contexts of KV are kept at most: conversations rarely fill theirs.
CONTEXTS = 4
OFFERED, ROOM_TO_OFFER = "qwq-32b", 8192


class ModelUnavailable(Exception):
    """The model cannot be served here; the message says why, with the numbers, and what to do."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """`engine` with path and KV room filled in; `name` and `sampling` where the model is known, `fit` unless it is the built-in one.

    `embedding` is the embedding model's file, with its entry where it is known.
    """

    engine: EngineSettings
    name: str | None = None
    sampling: SamplingParams | None = None
    fit: Fit | None = None
    embedding: tuple[Entry | None, Path] | None = None


def choose(settings: Settings, machine: Machine) -> Chosen:
    """What `engine.model`, `engine.draft_model` and `knowledge.embedding_model` mean: a path, or a pulled model's name. Nothing is loaded.

    Raises ModelUnavailable, UnknownModel or BrokenManifest.
    """
    engine, store = settings.engine, Store(settings.models.dir)
    guess, draft = _locate(engine.draft_model, store, "gguf") if engine.draft_model else (None, None)
    engine = engine.model_copy(update={"draft_model": draft})
    embedding = choose_embedding(settings)
    if engine.model is None:
        return Chosen(engine, embedding=embedding)
    entry, path = _locate(engine.model, store, default_format(machine))
    if entry is not None and entry.use == "embedding":
        raise ModelUnavailable(f"{entry.name} makes vectors and cannot chat")
    files = path.glob("*.safetensors") if path.is_dir() else [path] if path.is_file() else []
    kv_bytes = entry.kv_bytes_per_token(KV_BYTES[engine.kv_type]) if entry else 0
    draft_bytes = _draft_bytes(draft, guess, engine, entry)
    beside = draft_bytes + (embedding[1].stat().st_size if embedding else 0)
    fit = Fit(sum(file.stat().st_size for file in files) + beside, kv_bytes, machine.budget_bytes)
    if not fit.holds(engine.num_kv_tokens or MIN_TOKENS):
        room = f"there is room for {fit.num_tokens:,} tokens of KV, twice that with engine.kv_type q8_0; " if fit.num_tokens else ""
        advice = "choose a smaller model (`kefu models`), or set engine.memory_gib if you know better"
        raise ModelUnavailable(f"{path.name} does not fit this machine: {fit}; {room}{advice}")
    if entry is None:
        return Chosen(engine.model_copy(update={"model": path}), fit=fit, embedding=embedding)
    context = engine.context_length or entry.context_length
    num_kv_tokens = engine.num_kv_tokens or min(fit.num_tokens, CONTEXTS * context)
    update = {"model": path, "context_length": context, "num_kv_tokens": num_kv_tokens}
    return Chosen(engine.model_copy(update=update), entry.name, entry.sampling, fit, embedding)


def _draft_bytes(draft: Path | None, guess: Entry | None, engine: EngineSettings, entry: Entry | None) -> int:
    """Weights of the draft model and KV for one context, as far as the catalogue knows both models."""
    if draft is None or not draft.is_file():
        return 0
    num_tokens = engine.context_length or (entry.context_length if entry else 0)
    return draft.stat().st_size + (guess.kv_bytes_per_token(KV_BYTES[engine.kv_type]) * num_tokens if guess else 0)


def choose_embedding(settings: Settings) -> tuple[Entry | None, Path] | None:
    """What `knowledge.embedding_model` means, with its entry where it is known. Raises as `choose`."""
    if settings.knowledge.embedding_model is None:
        return None
    entry, path = _locate(settings.knowledge.embedding_model, Store(settings.models.dir), "gguf")
    if not path.is_file():
        raise ModelUnavailable(f"knowledge.embedding_model must be a GGUF file, and {path} is none; `kefu pull --format gguf` gets one")
    return entry, path


def _locate(model: Path, store: Store, wanted: Format) -> tuple[Entry | None, Path]:
    """A path goes before a name of the catalogue; a file keeps the name its publisher gave it."""
    path = model.expanduser()
    if path.exists() or path.suffix == ".gguf" or len(path.parts) > 1:
        return next((entry for entry in catalog().values() if entry.gguf.files[0].lower() == path.name.lower()), None), path
    entry = find(str(model))
    if not (here := store.formats(entry)):
        raise ModelUnavailable(f"{entry.name} is in the catalogue but not on this machine; get it with `kefu pull {entry.name}`")
    kind = wanted if wanted in here else here[0]
    store.manifest(entry, kind)
    return entry, store.model_path(entry, kind)


def default_format(machine: Machine) -> Format:
    """MLX on an Apple chip, GGUF elsewhere."""
    return "mlx" if machine.is_mac else "gguf"


def offer(settings: Settings, machine: Machine) -> Fit | None:
    """How QwQ would fit, on a first run on an Apple machine with room for it, when no model was chosen."""
    entry = find(OFFERED)
    fit = Fit(entry.weight_bytes("mlx"), entry.kv_bytes_per_token(), machine.budget_bytes)
    is_first = settings.engine.model is None and not settings.data_dir.exists() and not Store(settings.models.dir).formats(entry)
    return fit if machine.is_mac and is_first and fit.holds(ROOM_TO_OFFER) else None
