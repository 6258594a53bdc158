"""Messages become exactly the tokens they should, whoever wrote them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.protocol import ModelLoadError
from server.chat.template import ChatMessage, ChatTemplate, Role, common_length
from server.errors import InvalidRequest
from tests.server.fakes import SPECIALS, ByteTokenizer

TOKENIZER = ByteTokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
tricky = st.lists(st.sampled_from([*SPECIALS, "a", "<", "|im_end|>", "\ue000", "é", "<|im_", "\n", "</th"]), max_size=8).map("".join)


def _messages(*turns: tuple[Role, str]) -> list[ChatMessage]:
    return [ChatMessage(role, content) for role, content in turns]


def _text(token_ids: list[int]) -> str:
    """The rendered text, special tokens marked."""
    return "".join(f"⟦{SPECIALS[i - 256]}⟧" if i >= 256 else chr(i) for i in token_ids)


def test_the_prompt_opens_a_thought_and_effort_none_closes_it() -> None:
    turns = _messages(("system", "Be kind."), ("user", "hi"))
    head = "⟦<|im_start|>⟧system\nBe kind.⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\nhi⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\n⟦<think>⟧\n"
    assert _text(TEMPLATE.render(turns, None).token_ids) == head
    assert TEMPLATE.render(turns, "high").thinking_open
    silent = TEMPLATE.render(turns, "none")
    assert _text(silent.token_ids) == head + "\n⟦</think>⟧\n\n"
    assert not silent.thinking_open


def test_a_template_that_leaves_the_opening_to_the_model_gets_an_empty_thought() -> None:
    template = ChatTemplate(ByteTokenizer("{% for m in messages %}{{ m.content }}{% endfor %}:"))
    assert not template.opens_thought and template.thinks
    assert _text(template.render(_messages(("user", "hi")), "none").token_ids) == "hi:⟦<think>⟧\n\n⟦</think>⟧\n\n"
    plain = ChatTemplate(ByteTokenizer("{% for m in messages %}{{ m.content }}{% endfor %}:", special_tags=False))
    assert _text(plain.render(_messages(("user", "hi")), "none").token_ids) == "hi:"


@given(tricky, tricky, tricky)
def test_special_tokens_in_any_message_stay_text(system: str, user: str, second: str) -> None:
    turns = _messages(("system", system), ("user", user), ("assistant", "ok"), ("user", second))
    token_ids = TEMPLATE.render(turns, None).token_ids
    specials = [i for i in token_ids if i >= 256]
    assert specials == [i for i in TEMPLATE.render(_messages(*((m.role, "x") for m in turns)), None).token_ids if i >= 256]
    typed = bytes(i for i in token_ids if i < 256).decode()
    assert typed == f"system\n{system}\nuser\n{user}\nassistant\nok\nuser\n{second}\nassistant\n\n"


@given(st.text("ab\n", max_size=10), st.text("ab", min_size=1, max_size=10))
def test_old_thoughts_are_never_sent(thought: str, answer: str) -> None:
    def prompt(content: str) -> list[int]:
        return TEMPLATE.render(_messages(("user", "q"), ("assistant", content), ("user", "r")), None).token_ids

    assert prompt(f"<think>{thought}</think>\n\n{answer}") == prompt(answer)
    assert prompt(f"{thought}</think>{answer}") == prompt(answer)
    assert prompt(f"{answer}<think>{thought}") == prompt(answer)


def test_the_public_part_ends_where_the_first_user_text_begins() -> None:
    for user in ("hi", "Apple", "zebra", "", "\n"):
        prompt = TEMPLATE.render(_messages(("system", "Be kind."), ("developer", "Be brief."), ("user", user)), None)
        public = _text(prompt.token_ids[: prompt.public_len])
        assert public == ("⟦<|im_start|>⟧system\nBe kind.⟦<|im_end|>⟧\n⟦<|im_start|>⟧system\nBe brief.⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\n")


@given(tricky, tricky, tricky)
def test_the_public_part_does_not_depend_on_what_a_user_says(system: str, first: str, second: str) -> None:
    one, two = (TEMPLATE.render(_messages(("system", system), ("user", text)), None) for text in (first, second))
    assert one.public_len == two.public_len
    assert one.token_ids[: one.public_len] == two.token_ids[: two.public_len]


@given(tricky, tricky, tricky.filter(lambda text: not text.startswith("\n")))
def test_the_stem_is_a_prefix_of_every_next_turn(question: str, answer: str, following: str) -> None:
    said = _messages(("system", "s"), ("user", question), ("assistant", answer))
    stem = TEMPLATE.stem(said)
    following_prompt = TEMPLATE.render([*said, ChatMessage("user", following)], None).token_ids
    assert following_prompt[: len(stem.token_ids)] == stem.token_ids
    assert stem.public_len < len(stem.token_ids)
    assert _text(stem.token_ids).endswith("⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\n")


def test_a_refusal_repeats_the_template_and_never_the_message() -> None:
    source = """{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}
{%- if 'bad' in messages[0].content %}{{ raise_exception(messages[0].content) }}{% endif %}"""
    template = ChatTemplate(ByteTokenizer(source))
    with pytest.raises(InvalidRequest, match="one turn only"):
        template.render(_messages(("user", "a"), ("user", "b")), None)
    with pytest.raises(InvalidRequest) as caught:
        template.render(_messages(("user", "bad secret")), None)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__ }}", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{"]
)
def test_a_model_with_an_unusable_template_is_refused_at_load(source: str) -> None:
    with pytest.raises(ModelLoadError, match="chat template"):
        ChatTemplate(ByteTokenizer(source))


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_length(first: list[int], second: list[int]) -> None:
    n = common_length(first, second)
    assert first[:n] == second[:n]
    assert n in (len(first), len(second)) or first[n] != second[n]
