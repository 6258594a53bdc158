"""What signals count for: caps, quarantine, release. A pure function, so its invariants are properties."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.weighing import DAY_MS, MAX_NETWORK_DAY, MAX_VISITOR_DAY, TOLD_WHY, Signal, Weighed, weigh

WORDS = (
    "refund",
    "parcel",
    "card",
    "login",
    "price",
    "colour",
    "size",
    "order",
    "voucher",
    "invoice",
    "courier",
    "gift",
    "phone",
    "battery",
)
TOPICS = [f"{a} {b}" for a in WORDS for b in ("late", "wrong", "missing", "broken", "question about", "change of")]


def vote(number: int, **changed: object) -> Signal:
    fields: dict[str, object] = {
        "id": f"sig_{number}",
        "seq": number,
        "conversation_id": f"conv_{number}",
        "completion_id": f"cmpl_{number}",
        "visitor_id": f"vis_{number}",
        "network": f"net_{number}",
        "kind": "thumb",
        "value": 1.0,
        "weight": 1.0,
        "reason": None,
        "prob": None,
        "actor": "visitor",
        "tags": (),
        "retracts_id": None,
        "created_at_ms": 1_700_000_000_000 + number * DAY_MS // 20,
        "question": "",
    }
    return Signal(**{**fields, **changed})  # type: ignore[arg-type]


def crowd(size: int, seed: int = 0) -> list[Signal]:
    """A round of honest votes: many visitors, many subjects, three of four content."""
    chance = random.Random(seed)
    asked = [f"{chance.choice(TOPICS)} {chance.choice(TOPICS)} {chance.choice('abcdefgh') * 3}{n}" for n in range(size)]
    return [vote(n, question=text, value=1.0 if chance.random() < 0.75 else -1.0) for n, text in enumerate(asked)]


def quarantined(weighed: list[Weighed]) -> list[Weighed]:
    return [each for each in weighed if (each.reason or "").startswith("quarantine")]


def test_ten_thousand_votes_from_one_network_stay_within_two_percent_of_the_round() -> None:
    honest = crowd(300)
    flood = [
        vote(1000 + n, visitor_id="vis_x", network="net_x", created_at_ms=1_700_000_000_000 + n, question=f"q{n}") for n in range(10_000)
    ]
    for votes in (
        flood,
        flood[:9],
        [replace(each, created_at_ms=each.created_at_ms + n % 14 * DAY_MS) for n, each in enumerate(flood[:140])],
    ):
        weighed = weigh([*honest, *votes])
        theirs = sum(each.weight for each in weighed if each.signal.network == "net_x")
        assert theirs <= 0.02 * sum(each.weight for each in weighed) + 1e-9


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 2), st.integers(0, 2), st.sampled_from(["thumb", "rephrase", "stop", "csat"]), st.booleans()
        )
    )
)
def test_caps_hold_whatever_is_sent(sent: list[tuple[int, int, int, str, bool]]) -> None:
    signals = [
        vote(n, visitor_id=f"v{visitor}", network=f"n{net}", kind=kind, value=1.0 if up else -1.0, created_at_ms=day * DAY_MS)
        for n, (visitor, net, day, kind, up) in enumerate(sent)
    ]
    weighed = weigh(signals)
    assert [each.signal for each in weighed] == signals and weighed == weigh(signals)
    for name, most in (("visitor_id", MAX_VISITOR_DAY), ("network", MAX_NETWORK_DAY)):
        totals: dict[object, float] = {}
        for each in weighed:
            group = (getattr(each.signal, name), each.signal.created_at_ms // DAY_MS)
            totals[group] = totals.get(group, 0.0) + each.weight
        assert all(total <= most + 1e-6 for total in totals.values())
    assert all(each.weight >= 0 for each in weighed)


def test_what_is_retracted_refused_or_unsure_counts_for_nothing_and_says_why() -> None:
    old, unsure = vote(1), vote(3, kind="rephrase", prob=0.7)
    signals = [old, vote(2, retracts_id=old.id), unsure, vote(4, weight=0.0, reason="too_early"), vote(5, kind="rephrase", prob=0.95)]
    assert [(each.weight > 0, each.reason) for each in weigh(signals)] == [
        (False, "retracted"),
        (True, None),
        (False, "needs_review"),
        (False, "too_early"),
        (True, None),
    ]
    assert weigh([replace(unsure, is_released=True)])[0].weight > 0


def test_a_thumb_down_that_says_why_weighs_more() -> None:
    plain, told = weigh([vote(1, value=-1.0), vote(2, value=-1.0, tags=("wrong",))])
    assert plain.weight < told.weight


def test_all_that_one_visitor_has_against_an_answer_is_said_once() -> None:
    kinds = ("thumb", "rephrase", "correction")
    about = [vote(n, visitor_id="one", completion_id="cmpl", kind=kind, value=-1.0) for n, kind in enumerate(kinds)]
    assert math.isclose(sum(each.weight for each in weigh(about)), TOLD_WHY)
    others = [replace(each, visitor_id=f"vis_{n}", network=f"net_{n}") for n, each in enumerate(about)]
    assert sum(each.weight for each in weigh(others)) > 2 * TOLD_WHY


def test_a_planted_phrase_is_quarantined_named_and_released_by_a_reviewer() -> None:
    honest = crowd(1000)
    planted = [replace(each, question=f"{each.question} cerulean walrus", value=-1.0) for each in honest[:10]]
    weighed = weigh([*planted, *honest[10:]])
    caught = quarantined(weighed)
    assert {each.id for each in planted} <= {one.signal.id for one in caught}
    assert all("walrus" in (each.reason or "") or "cerulean" in (each.reason or "") for each in caught if each.signal in planted)
    assert len(caught) - len(planted) < 0.02 * len(honest)
    released = weigh([*(replace(each, is_released=True) for each in planted), *honest[10:]])
    assert all(each.weight > 0 for each in released[:10])


def test_honest_rounds_are_left_alone() -> None:
    for seed in range(3):
        assert len(quarantined(weigh(crowd(1000, seed)))) < 20


def test_real_questions_are_left_alone_in_chinese() -> None:
    rows = (Path(__file__).parents[2] / "bench" / "data" / "questions.zh.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [text for row in map(json.loads, rows) for text in (row["first"], row["second"])]
    chance = random.Random(1)
    votes = [vote(n, question=text, value=1.0 if chance.random() < 0.7 else -1.0) for n, text in enumerate(asked)]
    assert len(quarantined(weigh(votes))) <= 0.02 * len(votes)


def test_a_one_sided_voter_and_a_question_asked_ten_times_wait_for_a_reviewer() -> None:
    fan = [vote(n, visitor_id="fan", network="fan", created_at_ms=n * DAY_MS, question=TOPICS[n]) for n in range(21)]
    assert {each.reason for each in weigh(fan)} == {"quarantine: one_sided"}
    assert not quarantined(weigh(fan[:20]))
    same = [vote(n, network="one", created_at_ms=n * DAY_MS, question="why is my parcel so very late") for n in range(10)]
    assert [bool(quarantined([each])) for each in weigh(same)] == [False] * 3 + [True] * 7


def test_a_burst_waits_for_a_reviewer() -> None:
    honest = [vote(n, network=f"net_{n % 20}", created_at_ms=1_700_000_000_000 + n * DAY_MS // 10) for n in range(140)]
    burst = [vote(1000 + n, network="one", created_at_ms=honest[-1].created_at_ms, value=1.0 if n % 2 else -1.0) for n in range(15)]
    weighed = weigh([*honest, *burst])
    assert [each.signal for each in quarantined(weighed)] == burst
    assert {each.reason for each in quarantined(weighed)} == {"quarantine: burst"}
