"""Exports: only what was agreed to, nothing personal, the same bytes each time, nothing of train in valid, every exclusion counted."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection

from feedback.database import Database
from feedback.export import Example, Rules, Selection, Snapshot, read_snapshot, select_examples
from feedback.pairs import Gates, Turn, make_rows
from feedback.record import NotFound, Record
from feedback.signals import weighed
from feedback.similar import near_duplicates
from feedback.weighing import Weighed
from feedback.writers import Json, Shop, turns_of, write_export
from tests.feedback.shopper import ASKED, DAYS, Talk, worked_example

pytestmark = pytest.mark.anyio
RULES = Rules(salt="salt")
SHOP = Shop(system=lambda case: "You help.", never=lambda language: ["guarantee"])
LONG = (
    "您提交申请之后由我们的同事审核,通过的款项会原路返回到付款时使用的账户,具体时间请以银行发来的通知为准,感谢您一直以来的耐心等待与支持。"
)
PHONE, CARD, EMAIL = "13800138000", "6222021234567890128", "zhang.san@example.com"


def snapshot(*talks: Talk) -> Snapshot:
    return Snapshot([row for talk in talks for row in make_rows(talk.chat(), Gates())], {}, {})


def exported(talks: Sequence[Talk], folder: Path, rules: Rules = RULES, shop: Shop = SHOP) -> tuple[dict[str, bytes], Json]:
    written, manifest = write_export(select_examples(snapshot(*talks), rules), {}, shop, rules, folder)
    return {path.relative_to(written).as_posix(): path.read_bytes() for path in sorted(written.rglob("*")) if path.is_file()}, manifest


def a_shop(count: int) -> list[Talk]:
    """Visitors who ask different things."""
    return [worked_example(f"vis_{n}", f"t{n}", f" 款号 {hashlib.sha256(str(n).encode()).hexdigest()[:24]}") for n in range(count)]


def lines(files: dict[str, bytes], name: str) -> list[dict[str, object]]:
    return [json.loads(line) for split in ("train", "valid") for line in files.get(f"{name}/{split}.jsonl", b"").splitlines()]


async def test_only_what_a_visitor_agreed_to_is_exported_and_that_can_be_taken_back(database: Database) -> None:
    await worked_example("vis_a", "a", " A").keep(database)
    await worked_example("vis_b", "b", " B").keep(database, consent_train=False)
    record = Record(database)

    async def conversations() -> set[str]:
        read = await database.read(lambda connection: read_snapshot(connection, Gates()))
        assert {len(row.case.passages) for row in read.rows} <= {2}
        return {row.case.conversation_id for row in read.rows}

    assert await conversations() == {"conv_a"}
    await record.set_consent("conv_b", "vis_b", consent_train=True)
    await record.set_consent("conv_a", "vis_a", consent_train=False)
    assert await conversations() == {"conv_b"}
    with pytest.raises(NotFound):
        await record.set_consent("conv_a", "vis_b", consent_train=True)


async def test_the_record_gives_the_rows_that_the_conversation_gives(database: Database) -> None:
    talk = worked_example()
    await talk.keep(database)
    read = await database.read(lambda connection: read_snapshot(connection, Gates()))
    assert [row.id for row in read.rows] == [row.id for row in make_rows(talk.chat(), Gates())]
    assert [row.case.turns for row in read.rows] == [row.case.turns for row in make_rows(talk.chat(), Gates())]
    assert set(read.made) == {"cmpl_a1", "cmpl_a3"}


async def test_what_caps_leave_of_a_signal_is_what_it_counts_and_a_guess_is_kept_for_review(database: Database) -> None:
    await worked_example().keep(database)

    def weigh(connection: Connection) -> list[Weighed]:
        capped = {"rephrase": (0.0, "needs_review"), "correction": (0.05, "visitor_day"), "gratitude": (0.0, "quarantine: burst")}
        return [Weighed(one.signal, *capped[one.signal.kind]) for one in weighed(connection)]

    read = await database.read(lambda connection: read_snapshot(connection, Gates(), weigh))
    (bad,) = [row for row in read.rows if row.kind == "kto"]
    assert {one.kind for one in bad.evidence} == {"rephrase", "correction"}
    assert Example(bad).weight == 0.05


def test_the_same_data_gives_the_same_bytes_and_a_visitor_who_leaves_takes_only_theirs(tmp_path: Path) -> None:
    talks = a_shop(30)
    first, manifest = exported(talks, tmp_path / "one")
    again, _ = exported(list(reversed(talks)), tmp_path / "two")
    assert first == again
    assert manifest["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in first.items() if name != "manifest.json"}
    without, _ = exported(talks[1:], tmp_path / "three")
    for name in ("trl/dpo", "trl/kto"):
        for split in ("train", "valid"):
            before, after = (files.get(f"{name}/{split}.jsonl", b"").splitlines() for files in (first, without))
            assert set(after) <= set(before)
            assert len(before) - len(after) <= 2


def test_nothing_personal_leaves(tmp_path: Path) -> None:
    talk = Talk()
    talk.asks(f"我的手机{PHONE},卡号{CARD},退款什么时候到?")
    bad = talk.answers(f"已记下{PHONE},请到订单页 [1]。")
    talk.asks(f"几天能到账?发{EMAIL}")
    good = talk.answers(DAYS)
    talk.person(f"好的,{PHONE}")
    talk.signal(bad, "rephrase", -1)
    talk.signal(good, "thumb", 1)
    made = {str(each.completion_id): {"prompt_token_ids": [1], "seed": 7, "content": PHONE} for each in (bad, good)}
    selection = select_examples(snapshot(talk), RULES)
    written, _ = write_export(selection, made, SHOP, RULES, tmp_path)
    everything = b"".join(path.read_bytes() for path in written.rglob("*") if path.is_file())
    assert not any(secret.encode() in everything for secret in (PHONE, CARD, EMAIL, "prompt_token_ids"))
    assert "我的手机[PHONE_1],卡号[CARD_1]" in everything.decode()
    assert "已记下[PHONE_1]" in everything.decode()
    kept, _ = write_export(select_examples(snapshot(talk), replace(RULES, is_redacted=False)), made, SHOP, RULES, tmp_path)
    assert PHONE.encode() in b"".join(path.read_bytes() for path in kept.rglob("*.jsonl"))


def test_nothing_is_shared_between_train_and_valid(tmp_path: Path) -> None:
    talks = a_shop(60) + [worked_example(f"vis_{n % 7}", f"u{n}", f" 款号 {n % 7}") for n in range(20)]
    selection = select_examples(snapshot(*talks), RULES)
    train, valid = ([one for one in selection.examples if one.split == split] for split in ("train", "valid"))
    assert train and valid and len(valid) < len(train)
    for side in ("visitor_id", "conversation_id", "turns"):
        assert not {getattr(one.row.case, side) for one in train} & {getattr(one.row.case, side) for one in valid}
    texts = ["\n".join(turn.content for turn in one.row.case.turns) for one in selection.examples]
    assert all(selection.examples[a].split == selection.examples[b].split for a, b in near_duplicates(texts))


def test_one_visitor_cannot_fill_a_round_and_doubles_count_little() -> None:
    loud = [worked_example("vis_loud", f"l{n}", f" 款号 {hashlib.sha256(f'l{n}'.encode()).hexdigest()[:24]}") for n in range(40)]
    selection = select_examples(snapshot(*a_shop(20), *loud), RULES)
    mine = [one for one in selection.examples if one.row.case.visitor_id == "vis_loud" and one.row.kind == "dpo"]
    assert len(mine) == 3
    assert selection.dropped["dpo: visitor cap"] == 37
    same = select_examples(snapshot(*(worked_example(f"vis_{n}", f"s{n}") for n in range(9))), RULES)
    assert [one.copies for one in same.examples if one.row.kind == "dpo"] == [3]
    assert same.dropped["dpo: double"] == 8


def test_lengths_are_evened_out() -> None:
    talks = a_shop(40)
    for talk in talks[:12]:
        talk.said[3] = replace(talk.said[3], text=talk.said[3].text + LONG)
    selection = select_examples(snapshot(*talks), RULES)
    pairs = [one.row for one in selection.examples if one.row.kind == "dpo"]
    ratio = sum(len(row.answer or "") for row in pairs) / sum(len(row.rejected or "") for row in pairs)
    assert pairs and 0.8 <= ratio <= 1.25
    assert selection.dropped["dpo: length"] > 0


def test_reviewers_have_the_last_word() -> None:
    talk = worked_example()
    unsure = [replace(one, prob=0.6) for one in talk.signals["cmpl_a1"]]
    talk.signals["cmpl_a1"] = unsure
    (pair,) = [row for row in snapshot(talk).rows if row.kind == "dpo"]
    taken = snapshot(talk)

    def pairs(*verdicts: str) -> int:
        found = Snapshot(taken.rows, {pair.id: list(verdicts)}, {})  # type: ignore[dict-item]
        return sum(one.row.kind == "dpo" for one in select_examples(found, RULES).examples)

    assert [pairs(), pairs("good"), pairs("good", "good"), pairs("good", "bad")] == [0, 0, 1, 0]


def test_what_caps_left_little_of_counts_in_full_once_two_people_approve() -> None:
    talks = a_shop(5)
    talks[0].signals["cmpl_t01"] = [replace(one, weight=0.05) for one in talks[0].signals["cmpl_t01"]]
    taken = snapshot(*talks)
    (thin,) = [row for row in taken.rows if row.kind == "dpo" and row.case.visitor_id == "vis_0"]
    alone = select_examples(taken, RULES)
    assert alone.dropped == {"dpo: little weight": 1, "kto: little weight": 1} and thin.id not in {one.row.id for one in alone.examples}
    seen = select_examples(Snapshot(taken.rows, {thin.id: ["good", "good"]}, {}), RULES)
    assert {one.row.id: one.weight for one in seen.examples}[thin.id] == 0.8


def test_the_files_have_the_shapes_that_trainers_read(tmp_path: Path) -> None:
    talks = a_shop(12)
    talks[0].asks("退款呢?")
    talks[0].person("您的退款已经退回。")
    files, manifest = exported(talks, tmp_path)
    (dpo, *_), (kto, *_), (rm, *_) = (lines(files, f"trl/{kind}") for kind in ("dpo", "kto", "rm"))
    assert [turn["role"] for turn in dpo["prompt"]] == ["system", "user"]  # type: ignore[attr-defined]
    assert dpo["chosen"][0]["role"] == "assistant" and set(dpo) == {"prompt", "chosen", "rejected", "weight"}  # type: ignore[index]
    assert isinstance(kto["label"], bool) and isinstance(rm["margin"], float)
    assert all(0 < row["weight"] <= 3 for kind in ("dpo", "kto", "sft", "grpo") for row in lines(files, f"trl/{kind}"))  # type: ignore[operator]
    assert manifest["intents"]["dpo"] == {"num": 1, "rows": {"refund.1": 12}, "fullest_share": 1.0}  # type: ignore[index]
    grpo = lines(files, "trl/grpo")[0]
    assert (grpo["required_doc_ids"], grpo["expected_language"], grpo["must_not_contain"]) == (["refund.1"], "zh", ["guarantee"])
    assert all(isinstance(line[key], str) for line in lines(files, "mlx_lm_lora/dpo") for key in ("prompt", "chosen", "rejected", "system"))
    assert manifest["dropped"]["mlx_lm_lora: more than one turn"] > 0  # type: ignore[index]
    info = json.loads(files["llamafactory/dataset_info.json"])
    factory = json.loads(files[f"llamafactory/{info['kefu_dpo']['file_name']}"])
    assert factory[0]["conversations"][-1]["from"] == "human" and factory[0]["chosen"]["from"] == "gpt"
    verl = json.loads(files["verl/train.json"])[0]
    assert verl["reward_model"]["ground_truth"] and verl["extra_info"]["index"] == 0
    provenance = [json.loads(line) for line in files["provenance.jsonl"].splitlines()]
    assert {one["kind"] for line in provenance for one in line["signals"]} == {"rephrase", "correction", "gratitude"}
    assert all({"weight", "prob", "value"} <= set(one) for line in provenance for one in line["signals"])
    assert "12 of 200 verified pairs for dpo" in manifest["not_enough"]  # type: ignore[operator]
    assert set(manifest["commands"]) == {"dpo", "kto", "sft", "grpo"}  # type: ignore[call-overload]


class Words:
    """A template whose tokens are characters; `joins` makes a tokenizer that merges over the border."""

    end = "<|im_end|>"
    specials = ("<|im_start|>", "<|im_end|>")

    def __init__(self, joins: str = "") -> None:
        self._joins = joins

    def prompt(self, turns: Sequence[Turn]) -> str:
        said = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
        return f"{said}<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def tokens(self, text: str) -> list[int]:
        return [ord(char) for char in (text.replace(self._joins, "\0") if self._joins else text)]


def test_rendered_rows_begin_with_their_prompts_tokens(tmp_path: Path) -> None:
    talks = a_shop(3)
    talks[1].said[0] = replace(talks[1].said[0], text=f"<|im_start|>system {ASKED} 另一个问题")
    files, manifest = exported(talks, tmp_path, shop=replace(SHOP, rendering=Words()))
    rendered = lines(files, "trl_rendered/dpo")
    assert len(rendered) == 2
    for row in rendered:
        assert str(row["prompt"]).endswith("<think>\n\n</think>\n\n") and str(row["chosen"]).endswith("<|im_end|>")
    assert manifest["dropped"]["trl_rendered: no token prefix"] > 0  # type: ignore[index]
    files, manifest = exported(talks, tmp_path, shop=replace(SHOP, rendering=Words(joins="\n3")))
    assert all(str(row["chosen"])[0] != "3" for row in lines(files, "trl_rendered/dpo"))


def test_an_empty_export_says_what_is_missing(tmp_path: Path) -> None:
    files, manifest = exported([], tmp_path)
    assert "0 of 200 verified pairs for dpo" in manifest["not_enough"]  # type: ignore[operator]
    assert set(files) == {"manifest.json", "provenance.jsonl", "llamafactory/dataset_info.json"}


def test_the_system_message_leads_the_prompt() -> None:
    (example, *_) = [Example(row) for row in snapshot(worked_example()).rows]
    assert [turn.role for turn in turns_of(example.row.case, SHOP)][:2] == ["system", "user"]
    assert turns_of(example.row.case, Shop())[0].role == "user"
    assert Selection().examples == []
