"""`kefu round`: a planted weakness is mended by one round of DPO, and nothing else is spoilt. Trains for real, where the trainers are."""

import asyncio
import json
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest
from click.testing import Result
from llama_cpp import Llama
from typer.testing import CliRunner

from backends.adapter import AdapterRegistry
from backends.mini.score import generator
from feedback.database import Database
from feedback.evaluation import MAX_CHANGES, MAX_CHARS, Compared, Metrics, SaidNo, objections, ranking, read_changes
from feedback.rounds import Round, Rounds
from feedback.training.job import Job, train
from server import replay
from server.cli import cli
from server.replay import Case, Said, changed, compare
from tests.backends.lora import random_matrices, write_peft
from tests.conftest import MINI, WEIGHTS
from tests.feedback.training.slang import general, held, kept, pairs, write_cases, write_export
from web import load_strings

trains = pytest.mark.skipif(find_spec("trl") is None, reason="the trainers are not installed: make train")
SETTINGS = {"learning_rate": "4e-4", "rank": "16", "batch_size": "8", "beta": "0.3", "threads": "2"}


@pytest.fixture(autouse=True)
def data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEFU_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def kefu(*words: object) -> Result:
    return CliRunner().invoke(cli, ["round", *map(str, words)])


def stored(data_dir: Path, name: str = "round-1") -> Round:
    with closing(Database.in_folder(data_dir)) as database:
        return asyncio.run(Rounds(database).get(name))


@trains
def test_one_round_mends_a_planted_weakness_and_spoils_nothing(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The same bits whatever is computed beside them: the figures are of the round, not of the moment.
    monkeypatch.setenv("KEFU_ENGINE__FLASH_ATTENTION", "false")
    as_it_is = generator(Llama(str(WEIGHTS / "kefu-mini.gguf"), n_ctx=4096, n_threads=2, verbose=False))
    export = write_export(tmp_path / "export", [*pairs(seed=1, num_slang=56, num_plain=0), *kept(seed=1, num=88, generate=as_it_is)])
    sets = [write_cases(tmp_path / "weakness.jsonl", held(24)), write_cases(tmp_path / "elsewhere.jsonl", general(100))]
    given = [word for name, value in SETTINGS.items() for word in ("--with", f"{name}={value}")]
    refused = kefu("start", "--data", export)
    assert refused.exit_code == 2 and "144 rows, and dpo wants 200" in refused.output
    began = time.monotonic()
    started = kefu("start", "--data", export, *given, "--anyway")
    assert started.exit_code == 0, started.output
    print(f"trained in {time.monotonic() - began:.0f} s")
    assert "it was not evaluated" in kefu("promote", "round-1").output
    measured = kefu("evaluate", "round-1", "--set", sets[0], "--set", sets[1], "--no-must-say-no")
    assert measured.exit_code == 0, measured.output
    print(measured.output)
    found = msgspec.convert(stored(data_dir).metrics, Metrics).sets
    assert found["weakness"].difference[0] >= 0.20, measured.output
    assert found["elsewhere"].difference[0] >= -0.01, measured.output
    assert found["weakness"].difference[1] > 0, "beyond chance"
    counts, changes = found["weakness"].changed, read_changes(data_dir, "round-1")["weakness"]
    assert counts and counts[0] >= 5 and sum(one.is_better for one in changes) == min(counts[0], MAX_CHANGES)
    assert all("boomerang" in one.asked.lower() or "trail mail" in one.asked.lower() for one in changes)
    promoted = kefu("promote", "round-1", "--share", "0.2")
    assert promoted.exit_code == 0 and stored(data_dir).state == "canary", promoted.output
    began = time.monotonic()
    assert "the model itself answers" in kefu("rollback").output
    assert time.monotonic() - began < 30 and stored(data_dir).state == "retired"


def test_an_evaluation_keeps_what_an_adapter_spoilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_dir: Path) -> None:
    monkeypatch.setattr(replay, "MAX_TOKENS", 96)
    with closing(Database.in_folder(data_dir)) as database:
        name = asyncio.run(Rounds(database).begin({"method": "dpo", "data": str(tmp_path)}, "b" * 64, "5" * 64)).id
        noise = write_peft(tmp_path / "noise", random_matrices(1, 0.12))
        asyncio.run(Rounds(database).trained(name, AdapterRegistry(data_dir / "adapters").add(name, noise, MINI)))
    questions = write_cases(tmp_path / "general.jsonl", general(4))
    measured = kefu("evaluate", name, "--set", questions, "--no-must-say-no")
    assert measured.exit_code == 0, measured.output
    found, changes = msgspec.convert(stored(data_dir).metrics, Metrics).sets["general"], read_changes(data_dir, name)["general"]
    assert found.changed is not None and sum(found.changed) == len(changes) > 0, measured.output
    assert not changes[0].is_better and changes[0].wanted in questions.read_text(encoding="utf-8") and changes[0].before != changes[0].after
    with closing(Database.in_folder(data_dir)) as database:
        asyncio.run(Rounds(database).erased("5" * 64))
    assert kefu("evaluate", name, "--set", questions, "--limit", 1, "--no-must-say-no").exit_code == 0
    assert read_changes(data_dir, name) == {}, "somebody may be in it who was erased"


@trains
def test_a_run_that_was_cut_off_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", pairs(seed=1, num_slang=4, num_plain=4))
    model = str(WEIGHTS / "mlx")
    job = Job("dpo", "trl", model, str(export), str(tmp_path / "run"), max_steps=4, batch_size=1, threads=1)
    running = train(job)
    assert [next(running).step for _ in range(3)] == [1, 2, 3]
    running.close()
    assert any((tmp_path / "run" / "checkpoints").glob("checkpoint-*")) and not job.adapter.exists()
    rest = list(train(job))
    assert rest[0].step > 1 and rest[-1].step == rest[-1].num_steps == 4
    assert rest[-1].memory_bytes > 1e8 and (job.adapter / "adapter_model.safetensors").exists()


@trains
@pytest.mark.soak
@pytest.mark.parametrize("method", ["kto", "orpo", "sft", "grpo"])
def test_every_method_makes_an_adapter(method: str, tmp_path: Path, data_dir: Path) -> None:
    export = write_export(tmp_path / "export", pairs(seed=1, num_slang=8, num_plain=8))
    few = ("--with", "max_steps=2", "--with", "batch_size=4", "--with", "max_answer_tokens=96")
    started = kefu("start", "--data", export, "--method", method, *few, "--anyway")
    assert started.exit_code == 0, started.output
    assert stored(data_dir).adapter


@trains
def test_a_reward_model_is_measured_on_held_out_pairs_and_asked_by_grpo_alone(tmp_path: Path, data_dir: Path) -> None:
    export = write_export(tmp_path / "export", pairs(seed=1, num_slang=4, num_plain=4))
    few = ("--with", "max_steps=2", "--with", "batch_size=4", "--with", "threads=1", "--with", "max_answer_tokens=64", "--anyway")
    started = kefu("start", "--data", export, "--method", "reward", *few)
    assert started.exit_code == 0 and "round-1 is a reward model" in started.output, started.output
    assert "do not fit it" in kefu("evaluate", "round-1", "--judge", "http://127.0.0.1:9").output
    shown = kefu("evaluate", "round-1")
    assert "all: of 8 held-out pairs" in shown.output and "it is a reward model" in shown.output, shown.output
    assert stored(data_dir).adapter is None and msgspec.convert(stored(data_dir).metrics, Metrics).ranked["all"][0] == 8
    for words in (("promote", "round-1", "--anyway"), ("promote", "round-1", "--anyway", "--share", "1")):
        assert "it answers nobody" in kefu(*words).output and stored(data_dir).state == "candidate"
    asking = ("start", "--data", export, *few, "--reward-model", "round-1", "--method")
    assert "this is dpo, round-1 is reward" in kefu(*asking, "dpo").output
    asked = kefu(*asking, "grpo")
    assert asked.exit_code == 0, asked.output
    verified = msgspec.convert(stored(data_dir, "round-2").metrics, Metrics).verified
    assert verified is not None and all(0 < mean < 1 for mean in verified)
    assert "round-2 is grpo" in kefu("start", "--data", export, "--reward-model", "round-2", "--method", "grpo").output


def test_what_cannot_be_done_is_told_in_a_sentence(tmp_path: Path, data_dir: Path) -> None:
    assert "holds no export" in kefu("start", "--data", tmp_path).output
    assert "with wants name=value" in kefu("start", "--data", tmp_path, "--with", "rank=many").output
    export = write_export(tmp_path / "export", pairs(seed=1, num_slang=2, num_plain=2))
    assert "4 rows, and reward wants 1000: 996 are missing" in kefu("start", "--data", export, "--method", "reward").output
    assert "there is no round 'round-7'" in kefu("start", "--data", export, "--method", "grpo", "--reward-model", "round-7").output
    assert "that a trainer reads" in kefu("start", "--data", tmp_path, "--model", tmp_path / "some.gguf").output
    for words in (("evaluate", "round-7"), ("promote", "round-7"), ("show", "round-7"), ("resume", "round-7")):
        shown = kefu(*words)
        assert (shown.exit_code, "there is no round 'round-7'" in shown.output) == (2, True)
    assert "no round is served" in kefu("rollback").output
    assert "none; begin one" in kefu("list").output


CASES = [Case([{"role": "user", "content": f"{number}?"}], {"answer": f"1{number}"}) for number in range(100, 160)]
RIGHT, WRONG = [[Said(f"{digit}{number}", 5.0) for number in range(100, 160)] for digit in (1, 9)]


def against(metrics: Metrics) -> list[str]:
    """In English; Chinese says as much."""
    said, other = (objections(metrics, load_strings()[language]) for language in ("en", "zh"))
    assert len(said) == len(other) and "{" not in " ".join(said + other)
    return said


def test_what_is_better_may_be_promoted_and_what_is_not_may_not() -> None:
    better, same, worse = compare(CASES, WRONG, RIGHT), compare(CASES, RIGHT, RIGHT), compare(CASES, RIGHT, RIGHT[:55] + WRONG[55:])
    assert (better.before[0], better.after[0], better.difference) == (0, 1, (1, 1, 1))
    assert better.before[2] < 0.1 < 0.9 < better.after[1]
    assert against(Metrics("", {"a": better, "b": same})) == []
    assert against(Metrics("", {"b": same})) == ["no set got better beyond chance"]
    assert against(Metrics("", {"a": better, "c": worse})) == ["c fell by 8.3 points"]
    chance, fell, forbids = ((49, (-0.1, 0.05), 0), (40, (-0.3, -0.05), 0), (52, (-0.1, 0.2), 1))
    for (passed, change, num), reasons in ((chance, 0), (fell, 1), (forbids, 1)):
        assert len(against(Metrics("", {"a": better}, SaidNo(60, (50, passed), change, (0, num))))) == reasons
    long = Compared(60, same.before, same.after, better.difference, 1.4, (1, 1))
    assert against(Metrics("", {"a": long})) == ["in a answers are 1.40 times as long"]
    assert msgspec.convert(json.loads(msgspec.json.encode(Metrics("", {"a": better}))), Metrics).sets["a"] == better


def test_a_round_that_wore_down_the_rules_or_answers_nobody_may_not_be_promoted() -> None:
    better = compare(CASES, WRONG, RIGHT)
    assert against(Metrics("", {"a": better}, verified=(0.6, 0.595))) == []
    assert against(Metrics("", {"a": better}, verified=(0.6, 0.58))) == ["what the rules verify fell from 0.600 to 0.580 while it trained"]
    assert "a reward model" in against(Metrics(ranked=ranking([(1.0, 3)])))[0]
    assert against(Metrics(ranked=ranking([]))) == ["it was not evaluated: kefu round evaluate"]


def test_a_ranking_that_only_counts_characters_is_told_from_one_that_reads() -> None:
    pairs = [(float(by), by) for by in range(-20, 31) if by] + [(1.0, 0)]
    found = ranking(pairs)
    assert {kind: (num, share[0]) for kind, (num, share) in found.items()} == {"all": (51, 31 / 51), "shorter": (20, 0), "longer": (30, 1)}
    assert found["shorter"][1][2] < 0.2 < 0.8 < found["longer"][1][1]
    assert msgspec.convert(json.loads(msgspec.json.encode(Metrics(ranked=found))), Metrics).ranked == found


def test_a_judge_counts_only_when_the_order_does_not_matter() -> None:
    assert compare(CASES, WRONG, RIGHT, lambda prompt, first, second: "first").judged == (0, 0)
    smaller = compare(CASES, WRONG, RIGHT, lambda prompt, first, second: "first" if first < second else "second")
    assert smaller.judged == (60, 0)


def case(number: int, phone: str = "13800138000") -> Case:
    system = {"role": "system", "content": "Contact [1]: call 400-820-8820."}
    return Case([system, {"role": "user", "content": f"My phone is {phone}, order {number}?"}], {"answer": f"{number} [1]"})


def test_some_of_what_changed_is_kept_without_personal_data() -> None:
    cases = [case(number) for number in range(100, 160)]
    before = [Said("" if number % 2 else f"{number} [1]", 5.0) for number in range(100, 160)]
    after = [Said(f"{number} [1]" if number % 2 else f"call 13800138000 or 400-820-8820 {'x ' * 1500}", 5.0) for number in range(100, 160)]
    assert compare(cases, before, after).changed == (30, 30)
    some = changed(cases, before, after)
    assert [one.is_better for one in some] == [False] * MAX_CHANGES + [True] * MAX_CHANGES
    assert all(one.asked.startswith("My phone is [PHONE_1], order 1") and one.wanted.endswith(" [1]") for one in some)
    worse, better = some[0], some[-1]
    assert worse.after.startswith("call [PHONE_1] or 400-820-8820 x") and len(worse.after) == MAX_CHARS
    assert better.before == "" and better.after == better.wanted
    assert [one.asked[-4:-1] for one in some[:5]] != ["100", "102", "104", "106", "108"], "from all over the set"
    assert changed(cases, before, before) == [] == changed(cases[:0], [], [])
