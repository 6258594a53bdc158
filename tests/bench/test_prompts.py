"""Generated text is the same for a seed and never begins alike."""

from bench.prompts import Prompts


def test_a_seed_gives_the_same_text_again() -> None:
    assert Prompts("a").policy(1100) == Prompts("a").policy(1100)
    assert Prompts("a").policy(1100) != Prompts("b").policy(1100)


def test_texts_of_one_run_differ_from_their_first_word() -> None:
    prompts = Prompts("a")
    texts = [prompts.policy(50) for _ in range(20)] + [prompts.question() for _ in range(100)]
    assert len({text.split()[0] for text in texts}) == 120


def test_a_policy_has_the_words_asked_for_and_few_more() -> None:
    assert 1100 <= len(Prompts("a").policy(1100).split()) < 1130
