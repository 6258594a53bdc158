"""A model that was trained to see a BOS gets it, once, whoever prints it; a model without one gets none."""

from pathlib import Path

import gguf
import pytest

from backends.llamacpp.tokenizer import LlamaTokenizer
from backends.sequence import SamplingParams
from server.chat.service import ChatService, CompletionJob
from server.chat.template import ChatMessage, ChatTemplate
from tests.conftest import MINI
from tests.server.fakes import ScriptedEngine

BOS = "<|endoftext|>"
TURNS = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
MESSAGES = [
    ChatMessage("system", "Be kind."),
    ChatMessage("user", f"I typed {BOS}"),
    ChatMessage("assistant", "Yes."),
    ChatMessage("user", "hi"),
]


def _vocabulary(path: Path, template: str, bos: str | None, *, adds_bos: bool | None) -> LlamaTokenizer:
    """kefu-mini's words under another template, with this BOS."""
    writer = gguf.GGUFWriter(str(path), "qwen2")
    changed = {gguf.Keys.Tokenizer.BOS_ID, gguf.Keys.Tokenizer.ADD_BOS, gguf.Keys.Tokenizer.CHAT_TEMPLATE, "general.architecture"}
    for field in gguf.GGUFReader(str(MINI)).fields.values():
        if field.name not in changed and not field.name.startswith("GGUF."):
            inner = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        if field.name == gguf.Keys.Tokenizer.LIST and bos is not None:
            writer.add_bos_token_id(field.contents().index(bos))
    if adds_bos is not None:
        writer.add_add_bos_token(adds_bos)
    writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return LlamaTokenizer(str(path))


@pytest.mark.parametrize("is_printed", [True, False])
@pytest.mark.parametrize("adds_bos", [True, False, None])
def test_a_prompt_begins_with_one_bos_when_the_template_or_the_model_wants_it(
    tmp_path: Path, is_printed: bool, adds_bos: bool | None
) -> None:
    tokenizer = _vocabulary(tmp_path / "m.gguf", ("{{ bos_token }}" if is_printed else "") + TURNS, BOS, adds_bos=adds_bos)
    assert (tokenizer.bos_text, tokenizer.adds_bos) == (BOS, bool(adds_bos))
    bos = tokenizer.special_id(BOS)
    template = ChatTemplate(tokenizer)
    prompt, stem = template.render(MESSAGES, None), template.stem(MESSAGES[:1])
    wanted = is_printed or bool(adds_bos)
    assert prompt.token_ids.count(bos or -1) == wanted
    assert (prompt.token_ids[0] == bos) == wanted
    assert prompt.token_ids[: len(stem.token_ids)] == stem.token_ids
    assert prompt.public_len == stem.public_len > wanted


def test_a_text_completion_begins_with_it_too_but_given_tokens_stay_as_they_are(tmp_path: Path) -> None:
    tokenizer = _vocabulary(tmp_path / "m.gguf", TURNS, BOS, adds_bos=True)
    bos = tokenizer.special_id(BOS)
    engine = ScriptedEngine()
    service = ChatService(engine, lambda: tokenizer)
    for prompt in ("once", f"{BOS}once", (5, 6)):
        service.open(CompletionJob(prompt, SamplingParams(max_tokens=3)))
    assert engine.prompts == [[bos, *tokenizer.encode("once", special=True)]] * 2 + [[5, 6]]


def test_a_template_that_ends_turns_with_the_eos_gets_it(tmp_path: Path) -> None:
    tokenizer = _vocabulary(tmp_path / "m.gguf", TURNS.replace("]", "]{{ eos_token }}"), None, adds_bos=None)
    assert ChatTemplate(tokenizer).render(MESSAGES, None).token_ids.count(tokenizer.special_id("<|im_end|>") or -1) == len(MESSAGES)


def test_nothing_changes_for_a_model_without_bos_and_for_one_that_never_uses_it(tmp_path: Path) -> None:
    """kefu-mini names none; Qwen names <|endoftext|>, adds none, and its template prints none."""
    mini = LlamaTokenizer(str(MINI))
    assert (mini.bos_text, mini.adds_bos) == ("", False)
    source = mini.chat_template or ""
    qwen = _vocabulary(tmp_path / "m.gguf", source, BOS, adds_bos=False)
    expected = ChatTemplate(mini).render(MESSAGES, None)
    assert ChatTemplate(qwen).render(MESSAGES, None) == expected
    assert expected.token_ids[0] == mini.special_id("<|im_start|>")
