"""Settings: one frozen tree from the command line, `KEFU_*` variables, `kefu.toml` and defaults, in this order."""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from backends.mini.shop import Language
from server.effort import Effort
from server.hours import Hours

PREFIX = "KEFU_"
# RFC 7518, 3.2: an HS256 key is no shorter than its hash.
MIN_KEY_CHARS = 32
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BadSettings(Exception):
    """The settings cannot be used; the message is one sentence that names the setting, never its value."""


def _listed(value: object) -> object:
    """`a, b` in a variable is a list, as `["a", "b"]` is in the file."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _key_hash(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise ValueError("an API key is given as its SHA-256 in 64 hex digits, as `kefu key new` prints it")
    return value


def _site_id(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", value):
        raise ValueError("a site or key is named in a-z, 0-9, _ and -")
    return value


def _origin(value: str) -> str:
    if not re.fullmatch(r"https?://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[1-9]\d{0,4})?", value):
        raise ValueError("an origin is https://NAME or https://NAME:PORT in lower case: no path, no slash at the end, no *")
    return value


def _signing_key(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < MIN_KEY_CHARS:
        raise ValueError(f"a key has {MIN_KEY_CHARS} characters or more")
    return value


Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
KeyHash = Annotated[str, BeforeValidator(_key_hash)]
Origin = Annotated[str, AfterValidator(_origin)]
Name = Annotated[str, AfterValidator(_site_id)]
SigningKey = Annotated[SecretStr, AfterValidator(_signing_key)]


class _Branch(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ServerSettings(_Branch):
    """The HTTP door."""

    host: str = Field("127.0.0.1", description="Address to listen on; anything but loopback needs an API key.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_keys: Annotated[tuple[KeyHash, ...], NoDecode, BeforeValidator(_listed)] = Field((), description="SHA-256 of each API key.")
    allowed_hosts: Listed = Field((), description="Host names that clients may use besides loopback.")
    strict: bool = Field(False, description="Refuse unknown request fields instead of naming them in x-ignored-params.")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="Largest request body; the desk takes 64 kB at most.")
    head_timeout_s: float = Field(10.0, gt=0, description="A request's headers must be complete within this time.")
    body_timeout_s: float = Field(10.0, gt=0, description="A request body must be complete within this time.")
    max_in_flight: int = Field(256, ge=1, description="Requests that one API key may have open at once.")
    drain_s: float = Field(25.0, ge=0, description="After SIGTERM, open answers may take this long to finish.")


class ConsoleSettings(_Branch):
    """The team's pages, which customers never need."""

    port: int = Field(0, ge=0, le=65535, description="A port for the console alone; 0 means the server's, as long as that is on loopback.")
    host: str = Field("127.0.0.1", description="Address that the console's own port listens on.")


class EngineSettings(_Branch):
    """The engine process and its model."""

    model: Path | None = Field(None, description="A GGUF file, an MLX folder or a pulled model's name; without it kefu-mini answers.")
    adapter: str = Field("", description="The LoRA adapter that customers talk to, by its name in the registry; empty means none.")
    context_length: int = Field(0, ge=0, description="Tokens that one conversation may hold; 0 means what the model was trained for.")
    num_kv_tokens: int = Field(0, ge=0, description="Tokens of KV room that all conversations share; 0 means four contexts.")
    max_sequences: int = Field(16, ge=1, le=256, description="Answers computed at the same time.")
    max_waiting: int = Field(64, ge=0, description="Requests that may wait for a place; one more is refused.")
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0 means one per core.")
    gpu_layers: int = Field(-1, ge=-1, description="Layers computed on the GPU; -1 means all that fit.")
    flash_attention: bool | None = Field(None, description="On a CPU, off gives the same bits in any batch; on is faster for large models.")
    prompt_lookup: bool = Field(True, description="Guess repeated text ahead while that is faster; what is said stays the same.")
    draft_model: Path | None = Field(
        None, description="A small GGUF file or pulled model with the same tokens that guesses ahead where that is faster."
    )
    kv_type: Literal["f32", "f16", "q8_0"] = Field("f16", description="How KV is stored: q8_0 takes half the room of f16.")
    mlx_batch: bool = Field(False, description="MLX on a GPU: answer several at once; Macs have panicked under it, so soak yours first.")
    set_wired_limit: bool = Field(False, description="MLX on a GPU: pin the model's memory; Macs have panicked under it.")
    memory_gib: float = Field(0.0, ge=0, description="GiB that weights and KV may take; 0 means what this machine can spare.")


class ModelsSettings(_Branch):
    """The catalogue's models on this machine."""

    dir: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        Path("~/.kefu/models").expanduser(), description="Where pulled models lie."
    )
    url: str = Field("https://huggingface.co", pattern="^https?://", description="Where models are pulled from, or a mirror of it.")
    stall_s: float = Field(30.0, gt=0, description="A download that is silent for this long is asked again.")


class UpstreamSettings(_Branch):
    """Another server that gives the answers."""

    base_url: str = Field("", pattern=r"^(https?://[^@\s]+)?$", description="An OpenAI-compatible server; with it no engine is started.")
    api_key: SecretStr = Field(SecretStr(""), description="Its key: set KEFU_UPSTREAM__API_KEY rather than writing it into a file.")
    model: str = Field("", max_length=200, description="The model to ask it for; empty means the first that it lists.")
    context_length: int = Field(0, ge=0, description="Tokens that one conversation may hold there; 0 means what it tells, or 8192.")
    timeout_s: float = Field(120.0, gt=0, description="It may be silent for this long.")
    opens_thought: bool = Field(False, description="Its model begins in a thought (QwQ does) and it does not part thoughts from answers.")


def _hours(value: str) -> str:
    Hours.parse(value, "UTC")
    return value


def _timezone(value: str) -> str:
    Hours.parse("", value)
    return value


class DeskSettings(_Branch):
    """The support chat."""

    policy: Path | None = Field(None, description="The policy file; without it the demo shop's.")
    tools: Path | None = Field(None, description="The tools file; without it, while the demo shop's policy stands, the demo shop's.")
    effort: Effort = Field("low", description="How long the model may think before it answers a customer.")
    max_answer_tokens: int = Field(1024, ge=16, description="Longest answer, thinking included, in tokens.")
    pinned_tokens: int = Field(
        2000, ge=0, description="Knowledge of at most so many tokens stands whole in every prompt; of more, what fits the question."
    )
    max_in_flight: int = Field(1, ge=1, description="Answers that one visitor may wait for at once.")
    messages_per_minute: float = Field(20.0, gt=0, description="Messages that one visitor may send.")
    messages_per_day: int = Field(60, ge=1, description="Messages that one visitor may send in a day; a new conversation counts as one.")
    address_messages_per_day: int = Field(1440, ge=1, description="The same for one address; all behind one proxy or office are one.")
    visitors_per_minute: float = Field(60.0, gt=0, description="New visitors that one address may open.")
    compare_share: float = Field(
        0.05, ge=0, le=1, description="Share of answers, to customers who agreed to training, with a second one to compare; 0 means none."
    )
    hours: Annotated[str, AfterValidator(_hours)] = Field(
        "", description="When people answer, like Mon-Fri 09:00-18:00, Sat 10:00-14:00; empty means always."
    )
    timezone: Annotated[str, AfterValidator(_timezone)] = Field("UTC", description="The time zone of these hours, like Europe/Berlin.")
    rephrase_judge: float = Field(
        0.0, ge=0, lt=1, description="How often the model judges a rephrase rightly (bench.rephrase --judge); up to 0.5 it is never asked."
    )
    wait_minutes: float = Field(5.0, gt=0, description="After so long without a person the customer may leave a message instead.")
    notify_url: str = Field("", pattern=r"^(https?://[^@\s]+)?$", description="Told by POST whenever a customer waits for a person.")
    notify_key: SecretStr = Field(SecretStr(""), description="Signs what is told there (HMAC-SHA256, x-kefu-signature).")


class KnowledgeSettings(_Branch):
    """What answers rest on."""

    embedding_model: Path | None = Field(
        None, description="A GGUF file or pulled model that makes vectors: passages are found by meaning too, and /v1/embeddings answers."
    )


class RetentionSettings(_Branch):
    """How long what was said is kept."""

    transcripts_days: int = Field(30, ge=0, description="Days after its last message that a conversation is deleted; 0 means never.")
    training_days: int = Field(180, ge=0, description="The same for a conversation that the customer lets improve the answers.")
    feedback_days: int = Field(
        180, ge=0, description="Days after which comments and forms of a conversation that is kept longer are redacted; 0 means never."
    )
    audit_days: int = Field(365, ge=0, description="Days that a row of the audit log is kept; 0 means for ever.")


class SiteSettings(_Branch):
    """A web site that shows the widget."""

    origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_listed)] = Field(
        (), description="Whose pages may show it, exactly; none means this server's own pages."
    )
    title: str = Field("", max_length=60, description="The name at the top of the chat; empty means the shop's.")
    language: Language | None = Field(None, description="What the chat speaks where the page does not say; else the browser's language.")
    accent: str = Field(
        "#1c6b57", pattern="^#[0-9a-f]{6}$", description="The one colour; made darker or lighter until text in it is legible."
    )
    keys: dict[Name, SigningKey] = Field({}, description="What the site's server signs known customers with, by kid.")


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        toml_file="kefu.toml",
        nested_model_default_partial_update=True,
    )

    server: ServerSettings = ServerSettings()
    console: ConsoleSettings = ConsoleSettings()
    engine: EngineSettings = EngineSettings()
    models: ModelsSettings = ModelsSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    desk: DeskSettings = DeskSettings()
    knowledge: KnowledgeSettings = KnowledgeSettings()
    retention: RetentionSettings = RetentionSettings()
    sites: dict[Name, SiteSettings] = Field({"demo": SiteSettings()}, description="Web sites that show the widget; see below.")
    data_dir: Path = Field(Path("data"), description="Where conversations, signals and the signing key live.")
    database_url: str = Field("", description="postgresql://user:password@host/name; without it a SQLite file in data_dir.", repr=False)
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged: never message content.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(overrides: Mapping[str, object] | None = None) -> Settings:
    """The settings in force. `overrides` come from the command line, nested like the tree; None is not set. Raises BadSettings."""
    for name in os.environ:
        branch = name.upper().removeprefix(PREFIX).partition("__")[0].lower()
        if name.upper().startswith(PREFIX) and branch not in Settings.model_fields:
            raise BadSettings(f"there is no setting {name}")
    try:
        settings = Settings(**_given(overrides or {}))  # type: ignore[arg-type]
    except ValidationError as error:
        raise BadSettings(_sentence(error)) from None
    except (SettingsError, ValueError) as error:
        raise BadSettings(f"the settings cannot be read: {type(error).__name__}") from None
    in_file = TomlConfigSettingsSource(Settings).toml_data.get("sites", {})
    if named := next((name for name, site in in_file.items() if "keys" in site), None):
        raise BadSettings(
            f"sites.{named}.keys is a secret: set KEFU_SITES__{named.upper()}__KEYS__KID instead of writing it into kefu.toml"
        )
    if settings.upstream.base_url and settings.engine.model:
        raise BadSettings("set engine.model or upstream.base_url, not both: an upstream brings its own model")
    if not is_loopback(settings.server.host) and not settings.server.api_keys:
        raise BadSettings(f"listening on {settings.server.host} needs an API key in server.api_keys; make one with `kefu key new`")
    return settings


def _given(overrides: Mapping[str, object]) -> dict[str, object]:
    branches = {name: _given(value) if isinstance(value, Mapping) else value for name, value in overrides.items()}
    return {name: value for name, value in branches.items() if value is not None and value != {}}


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine can reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"there is no setting {name}"
    return f"setting {name}: {first['msg'].removeprefix('Value error, ')}"
