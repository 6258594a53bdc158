"""The shipped weights: one tokenizer in both forms, one template, and a model that answers."""

import json
from pathlib import Path

import pytest

from backends.mini import score
from backends.mini.shop import load_shop, system_message

MINI = Path(score.__file__).parent
TRICKY = [
    "How much is it? It's $4.90!",
    "  spaces   and\ttabs\r\n\r\nlines ",
    "编号是 QG-0954，满45元包邮。",
    "ＦＵＬＬ ｗｉｄｔｈ １２３",
    "café cafe\u0301 naïve",
    "👍🏽 👨‍👩‍👧 🫠",
    "こんにちは 안녕하세요 привет שלום",
    "don't WE'LL they've",
    "a\u00a0b\u3000c\u200bd",
    "x" * 300,
    "!!!???...\n\n\n",
    "\n",
    " ",
    "care@quietkettle.example 555-0142",
    "<|im_start|>system\nfree<|im_end|>",
    "</think><think>",
    "𠮷野家 ½ ² Ⅷ",
]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(MINI / "weights" / "mlx" / "tokenizer.json"))


@pytest.fixture(scope="module")
def model():
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(str(score.GGUF), n_ctx=2048, n_threads=2, verbose=False)


@pytest.mark.parametrize("text", TRICKY)
def test_both_tokenizers_give_the_same_ids(model, tokenizer, text: str) -> None:
    import unicodedata

    # llama.cpp does not normalise, so it is given what the other makes of the text first.
    normal = unicodedata.normalize("NFC", text)
    assert model.tokenize(normal.encode(), add_bos=False, special=True) == tokenizer.encode(text).ids


@pytest.mark.parametrize("text", TRICKY)
def test_every_text_comes_back_whole(model, text: str) -> None:
    ids = model.tokenize(text.encode(), add_bos=False, special=False)
    assert model.detokenize(ids, special=True) == text.encode()


def render(messages: list[dict[str, object]], add_generation_prompt: bool = True, tools: list[dict[str, object]] | None = None) -> str:
    jinja2 = pytest.importorskip("jinja2")

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    template = environment.from_string((MINI / "chat_template.jinja").read_text(encoding="utf-8"))
    return template.render(messages=messages, add_generation_prompt=add_generation_prompt, tools=tools)


def test_the_template_drops_old_thoughts_and_opens_a_new_one() -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "t\n</think>\n\nA"},
        {"role": "user", "content": "V"},
    ]
    turns = [("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V")]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert render(messages, add_generation_prompt=False) == text
    assert render(messages) == text + "<|im_start|>assistant\n<think>\n"


def test_the_template_writes_tools_calls_and_results_as_they_were_trained() -> None:
    chat = json.dumps({"name": "look", "arguments": {"order_id": "QK-1"}})
    schema = {"name": "look", "parameters": {"type": "object"}}
    messages = [
        {"role": "system", "content": "S"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {"order_id": "QK-1"}}}]},
        {"role": "tool", "content": "R"},
    ]
    turns = [
        ("system", f"S\n\n# Tools\n{json.dumps(schema)}"),
        ("assistant", f"<tool_call>\n{chat}\n</tool_call>"),
        ("user", "<tool_response>\nR\n</tool_response>"),
    ]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert render(messages, False, tools=[{"type": "function", "function": schema}]) == text
    assert render(messages[:1], False, tools=[schema]) == text[: text.index("<|im_end|>")] + "<|im_end|>\n"


def test_the_template_refuses_roles_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="wizard"):
        render([{"role": "wizard", "content": "x"}])


def test_every_form_carries_the_same_template(model) -> None:
    template = (MINI / "chat_template.jinja").read_text(encoding="utf-8")
    config = json.loads((MINI / "weights" / "mlx" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert model.metadata["tokenizer.chat_template"] == config["chat_template"] == template


def test_the_model_answers_what_the_page_suggests_from_the_right_passage(model) -> None:
    right = 0
    for language in ("en", "zh"):
        shop = load_shop(language)
        for question, passage_id in zip(shop.suggestions, ("returns", "shipping", "free_shipping", "warranty"), strict=True):
            turns = [{"role": "system", "content": system_message(shop, language)}, {"role": "user", "content": question}]
            output = model(render(turns), max_tokens=200, temperature=0.0)["choices"][0]["text"]
            thought, tag, answer = output.partition("</think>")
            assert thought.strip() and tag and answer.strip(), question
            number = [passage.id for passage in shop.passages].index(passage_id) + 1
            right += f"[{number}]" in answer
    assert right >= 6


@pytest.mark.parametrize(("language", "line"), [("en", "Passages:\nReturns [1]: Unopened"), ("zh", "资料：\n退货 [1]：未拆封")])
def test_the_system_message_numbers_the_passages(language, line: str) -> None:
    shop = load_shop(language)
    message = system_message(shop, language)
    assert message.startswith(f"{shop.persona}\n\n{line}")
    assert message.splitlines()[-1].startswith(f"{shop.passages[-1].title} [{len(shop.passages)}]")
    assert not message.endswith("\n")
