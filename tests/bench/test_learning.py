"""What the benchmarks of the detector and of retrieval do with a judge and with an embedding model."""

import json
from pathlib import Path

import pytest
from fastapi import FastAPI

from bench import rephrase
from bench.rephrase import AGAIN, FIRES, TRAINS, judged, load, meanings, pairs_of, understood
from bench.retrieval import measure
from feedback.rephrase import classify
from server.settings import KnowledgeSettings, Settings
from tests.conftest import MINI
from tests.server.conftest import serving

WITH_MINI = Settings(knowledge=KnowledgeSettings(embedding_model=MINI))


@pytest.mark.parametrize(("is_right", "least"), [(True, 0.9), (False, 0.0)])
def test_a_judge_is_measured_on_the_labels_before_it_is_believed(
    is_right: bool, least: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rephrase.console, "print", print)
    labelled = [one for one in load()[0] if one.source == "written"]
    truth = {one.turn.text[:400]: one.kind for one in labelled}
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, object]:
        return {"data": [{"id": "judge-32b"}]}

    @app.post("/v1/chat/completions")
    def complete(body: dict[str, object]) -> dict[str, object]:
        kind = truth[json.loads(body["messages"][1]["content"])["next_turn"]]  # type: ignore[index]
        said = kind if (is_right or kind not in AGAIN) else "closing"
        content = json.dumps({"kind": said, "first_answer_resolves_it": False})
        return {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}

    said = [(one, (verdict := classify(one.turn)).kind, verdict.prob) for one in labelled]
    with serving(app) as url:
        after = judged(said, url)
    told = float(capsys.readouterr().out.rsplit("=", 1)[1])
    assert (told > least) is True and (told < 0.6) is not is_right
    trained = [one.kind in AGAIN for one, _, prob in after if prob >= TRAINS]
    assert [one for one, *_ in after] == labelled
    if is_right:
        assert all(trained) and len(trained) == sum(one.kind in AGAIN and prob >= FIRES for one, _, prob in said)


def test_vectors_join_the_words_of_what_is_measured(tmp_path: Path) -> None:
    labelled, _ = load()
    few = labelled[:3]
    like = meanings(MINI, few, pairs_of(few))
    told, pairs = understood(few, pairs_of(few), like)
    assert all(len(one.turn.meanings) == len(one.turn.earlier) for one in told)
    assert [pair.meaning is not None for pair in pairs] == [True] * len(pairs)
    learnt = [(text, text.split()[-1]) for text in ("how do I return a teapot", "is the shop open", "do you sell coffee")]
    asked = [("may I send the teapot back", "teapot"), ("can I buy coffee", "coffee")]
    words, both = measure(learnt, asked, ["hello there"]), measure(learnt, asked, ["hello there"], settings=WITH_MINI)
    assert words.recall_at_5 == both.recall_at_5 == 1 and words.outside is not None and both.outside is not None
