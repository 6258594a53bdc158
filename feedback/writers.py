"""An export's files, in the shapes that trainers load as they are; the same examples give the same bytes."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

from feedback import redact
from feedback.export import KINDS, Example, Rules, Selection
from feedback.intents import NUM_FULLEST
from feedback.pairs import Case, Row, Turn
from feedback.rewards import action_of, language_of

Json = Mapping[str, object]
PROVENANCE = "provenance.jsonl"
NUM_SHOWN = 10  # intents that the manifest names
# Fewer than these teach a model nothing that can be told from chance.
NEEDED = {"dpo": (200, "verified pairs"), "kto": (300, "judged answers"), "grpo": (100, "questions with a known answer")}
NEEDED_OF_EACH_LABEL = 100
NEEDED_RM = 1000
COMMANDS = {
    "dpo": [
        "trl dpo --model_name_or_path MODEL --dataset_name trl/dpo --use_peft --output_dir adapter",
        "llamafactory-cli train --stage dpo --do_train --model_name_or_path MODEL --dataset_dir llamafactory --dataset kefu_dpo"
        " --finetuning_type lora --template qwen --output_dir adapter",
        "mlx_lm_lora.train --train --train-mode dpo --model MODEL --reference-model-path MODEL --data mlx_lm_lora/dpo",
        "trl reward --model_name_or_path MODEL --dataset_name trl/rm --use_peft --output_dir reward",
    ],
    "kto": ["trl kto --model_name_or_path MODEL --dataset_name trl/kto --use_peft --per_device_train_batch_size 4 --output_dir adapter"],
    "sft": ["trl sft --model_name_or_path MODEL --dataset_name trl/sft --use_peft --output_dir adapter"],
    "grpo": [
        "trl grpo --model_name_or_path MODEL --dataset_name trl/grpo --reward_funcs feedback.rewards.kefu_reward --use_peft"
        " --output_dir adapter",
        "mlx_lm_lora.train --train --train-mode grpo --model MODEL --data mlx_lm_lora/grpo",
        "python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo data.train_files=verl/train.json data.val_files=verl/valid.json"
        " custom_reward_function.path=feedback/rewards.py custom_reward_function.name=compute_score actor_rollout_ref.model.path=MODEL",
    ],
}


class Rendering(Protocol):
    """A model's own template. `prompt` ends where the answer begins, its thought closed and empty; `end` ends an answer.

    `specials` are the texts that are tokens of their own: a customer who typed one must not have written a turn.
    """

    @property
    def end(self) -> str: ...
    @property
    def specials(self) -> Sequence[str]: ...
    def prompt(self, turns: Sequence[Turn]) -> str: ...
    def tokens(self, text: str) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Shop:
    """What the rows need of the shop: `system(case)` is the system message, `never(language)` what must not be said."""

    system: Callable[[Case], str] = lambda case: ""
    never: Callable[[str], Sequence[str]] = lambda language: ()
    rendering: Rendering | None = None


def turns_of(case: Case, shop: Shop) -> list[Turn]:
    """The prompt: system message first, when there is one."""
    system = shop.system(case)
    return [*([Turn("system", system)] if system else []), *case.turns]


def write_export(selection: Selection, made: Mapping[str, Json], shop: Shop, rules: Rules, folder: Path) -> tuple[Path, Json]:
    """Write everything into a folder named after its contents inside `folder`; it appears whole or not at all.

    Returns the folder and the manifest. `made` is how the answers were made, by completion.
    """
    files = dict(_files(selection.examples, made, shop, selection.dropped))
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    manifest = _manifest(selection, rules) | {"files": sums}
    snapshot = hashlib.sha256(_line(manifest)).hexdigest()[:16]
    manifest = {"snapshot": snapshot, **manifest}
    files["manifest.json"] = json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True).encode()
    whole, partial = folder / snapshot, folder / f".{snapshot}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700, parents=True)
    for name, content in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(content)
    shutil.rmtree(whole, ignore_errors=True)
    partial.rename(whole)
    return whole, manifest


def _files(examples: Sequence[Example], made: Mapping[str, Json], shop: Shop, dropped: Counter[str]) -> Iterator[tuple[str, bytes]]:
    by_kind = {kind: [one for one in examples if one.row.kind == kind] for kind in KINDS}
    factory: dict[str, Json] = {}
    for kind, mine in by_kind.items():
        yield from _split_lines(f"trl/{kind}", mine, lambda one: _trl(one, shop))
        if kind != "grpo" and mine:
            yield f"llamafactory/{kind}.json", _array(_factory(one.row, shop) for one in mine if one.split == "train")
            factory[f"kefu_{kind}"] = {"file_name": f"{kind}.json", **FACTORY[kind]}
    yield from _split_lines("trl/rm", by_kind["dpo"], lambda one: _reward_model(one, shop))
    if shop.rendering:
        for kind in ("dpo", "kto"):
            yield from _split_lines(f"trl_rendered/{kind}", _renderable(by_kind[kind], shop, dropped), lambda one: _rendered(one, shop))
    flat = [one for one in by_kind["dpo"] + by_kind["grpo"] if len(one.row.case.turns) == 1]
    dropped["mlx_lm_lora: more than one turn"] += len(by_kind["dpo"] + by_kind["grpo"]) - len(flat)
    for mode, kind in (("dpo", "dpo"), ("orpo", "dpo"), ("grpo", "grpo")):
        yield from _split_lines(f"mlx_lm_lora/{mode}", [one for one in flat if one.row.kind == kind], lambda one: _mlx(one.row, shop))
    for split in ("train", "valid"):
        if mine := [one for one in by_kind["grpo"] if one.split == split]:
            yield f"verl/{split}.json", _array(_verl(one.row, shop, split, place) for place, one in enumerate(mine))
    yield "llamafactory/dataset_info.json", json.dumps(factory, indent=1, sort_keys=True).encode()
    yield PROVENANCE, b"".join(_line(_provenance(one, made)) for one in examples)


def _split_lines(name: str, examples: Sequence[Example], shape: Callable[[Example], Json]) -> Iterator[tuple[str, bytes]]:
    """A file without rows is not written: loaders stumble over empty ones."""
    for split in ("train", "valid"):
        if lines := [_line(shape(one)) for one in examples if one.split == split]:
            yield f"{name}/{split}.jsonl", b"".join(lines)


def _line(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, sort_keys=True, default=_plain) + "\n").encode("utf-8", "replace")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | set) else str(value)


def _array(values: Iterator[Json]) -> bytes:
    return json.dumps(list(values), ensure_ascii=False, sort_keys=True, indent=1).encode("utf-8", "replace")


def _messages(turns: Sequence[Turn]) -> list[Json]:
    return [turn.message for turn in turns]


def _said(text: str | None) -> list[Json]:
    return [{"role": "assistant", "content": text or ""}]


def _trl(one: Example, shop: Shop) -> Json:
    row, prompt, counts = one.row, _messages(turns_of(one.row.case, shop)), {"weight": one.weight}
    if row.kind == "sft":
        return {"messages": [*prompt, *_said(row.answer)], **counts}
    if row.kind == "kto":
        return {"prompt": prompt, "completion": _said(row.answer), "label": bool(row.label), **counts}
    if row.kind == "dpo":
        return {"prompt": prompt, "chosen": _said(row.answer), "rejected": _said(row.rejected), **counts}
    return {"prompt": prompt, **facts(row, shop), **counts}


def facts(row: Row, shop: Shop) -> Json:
    """What the reward functions are told of a GRPO row."""
    numbered = {each.number: each for each in row.case.passages}
    cited = [numbered[number].id if number in numbered else "" for number in range(1, max(numbered, default=0) + 1)]
    required = [each.id for each in row.case.passages if f"[{each.number}]" in (row.answer or "")]
    return {
        "answer": row.answer or "",
        "question": row.case.question,
        "evidence": [f"{each.title}: {each.text}" for each in row.case.passages],
        "cited_doc_ids": cited,
        "required_doc_ids": required,
        "must_not_contain": list(shop.never(row.case.language)),
        "expected_language": language_of(row.answer or ""),
        "expected_action": action_of(row.answer or ""),
    }


def _reward_model(one: Example, shop: Shop) -> Json:
    prompt = _messages(turns_of(one.row.case, shop))
    return {"chosen": [*prompt, *_said(one.row.answer)], "rejected": [*prompt, *_said(one.row.rejected)], "margin": one.weight}


def _renderable(examples: Sequence[Example], shop: Shop, dropped: Counter[str]) -> list[Example]:
    """Those whose prompt's tokens begin those of prompt and answer, for there a trainer cuts; and where nobody typed a special one."""
    assert shop.rendering is not None
    kept = []
    for one in examples:
        texts = [*(turn.content for turn in one.row.case.turns), one.row.answer or "", one.row.rejected or ""]
        rendered = {} if any(special in text for special in shop.rendering.specials for text in texts) else _rendered(one, shop)
        if rendered and all(_is_prefix(rendered, name, shop.rendering) for name in ("chosen", "rejected", "completion")):
            kept.append(one)
    dropped["trl_rendered: no token prefix"] += len(examples) - len(kept)
    return kept


def _is_prefix(rendered: Json, name: str, rendering: Rendering) -> bool:
    prompt = list(rendering.tokens(str(rendered["prompt"])))
    return name not in rendered or list(rendering.tokens(f"{rendered['prompt']}{rendered[name]}"))[: len(prompt)] == prompt


def _rendered(one: Example, shop: Shop) -> Json:
    assert shop.rendering is not None
    row, prompt, end = one.row, shop.rendering.prompt(turns_of(one.row.case, shop)), shop.rendering.end
    if row.kind == "kto":
        return {"prompt": prompt, "completion": f"{row.answer}{end}", "label": bool(row.label), "weight": one.weight}
    return {"prompt": prompt, "chosen": f"{row.answer}{end}", "rejected": f"{row.rejected}{end}", "weight": one.weight}


FACTORY: Mapping[str, Json] = {
    "sft": {"formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system"}},
    "kto": {"formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system", "kto_tag": "kto_tag"}},
    "dpo": {
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "conversations", "system": "system", "chosen": "chosen", "rejected": "rejected"},
    },
}
SPEAKERS = {"user": "human", "assistant": "gpt"}


def _factory(row: Row, shop: Shop) -> Json:
    # There turns must alternate; a person may have spoken after the assistant.
    spoken = groupby(row.case.turns, key=lambda turn: SPEAKERS[turn.role])
    turns = [{"from": who, "value": "\n\n".join(turn.content for turn in said)} for who, said in spoken]
    answer = {"from": "gpt", "value": row.answer or ""}
    if row.kind == "dpo":
        made: Json = {"conversations": turns, "chosen": answer, "rejected": {"from": "gpt", "value": row.rejected or ""}}
    else:
        made = {"conversations": [*turns, answer], **({"kto_tag": bool(row.label)} if row.kind == "kto" else {})}
    return {**made, "system": shop.system(row.case)}


def _mlx(row: Row, shop: Shop) -> Json:
    asked = {"prompt": row.case.question, "system": shop.system(row.case)}
    if row.kind == "grpo":
        return {**asked, "answer": row.answer or "", "type": "support"}
    return {**asked, "chosen": row.answer or "", "rejected": row.rejected or ""}


def _verl(row: Row, shop: Shop, split: str, index: int) -> Json:
    return {
        "data_source": "kefu",
        "prompt": _messages(turns_of(row.case, shop)),
        "ability": "support",
        "reward_model": {"style": "rule", "ground_truth": row.answer or ""},
        "extra_info": {"split": split, "index": index, **facts(row, shop)},
    }


HOW = (
    *(
        "model",
        "model_sha256",
        "quantization",
        "engine",
        "engine_version",
        "adapter",
        "template_sha256",
        "policy_version",
        "knowledge_version",
    ),
    *("sampling", "seed", "finish_reason", "prompt_token_ids", "completion_token_ids", "logprobs"),
)


def conversation_hash(conversation_id: str) -> str:
    """What stands for a conversation in the provenance: 16 hex digits."""
    return hashlib.sha256(conversation_id.encode()).hexdigest()[:16]


def _provenance(one: Example, made: Mapping[str, Json]) -> Json:
    row = one.row
    return {
        "row_id": row.id,
        "split": one.split,
        "conversation": conversation_hash(row.case.conversation_id),
        "origin": row.origin,
        "strength": row.strength,
        "intent": one.intent,
        "copies": one.copies,
        "weight": one.weight,
        "signals": [asdict(each) for each in row.evidence],
        "passages": [each.id for each in row.case.passages],
        "answers": {name: _how(row, name, made[name]) for name in (row.answer_id, row.rejected_id) if name in made and name},
        "redaction": redact.VERSION,
        "consent_train": True,
    }


def _how(row: Row, name: str, how: Json) -> Json:
    """How an answer was made. Token ids spell what was said: they stay here where anything was redacted, or where later turns led to it."""
    hidden = {"prompt_token_ids", "completion_token_ids", "logprobs"} if row.is_redacted else set()
    hidden |= {"prompt_token_ids"} if row.kind == "dpo" and name == row.answer_id else set()
    return {key: how[key] for key in HOW if key in how and key not in hidden}


def _manifest(selection: Selection, rules: Rules) -> dict[str, object]:
    rows = selection.examples
    counts = Counter(f"{one.row.kind} {one.split}" for one in rows)
    labels = Counter(str(one.row.label) for one in rows if one.row.kind == "kto")
    good, bad = labels["True"], labels["False"]
    return {
        "counts": dict(sorted(counts.items())),
        "languages": dict(sorted(Counter(f"{one.row.kind} {one.row.case.language}" for one in rows).items())),
        "origins": dict(sorted(Counter(f"{one.row.kind} {one.row.origin}" for one in rows).items())),
        "intents": {kind: fullest for kind in KINDS if (fullest := _intents([one for one in rows if one.row.kind == kind]))},
        "kto_labels": {"true": good, "false": bad, "desirable_weight": round(bad / good, 3) if good > bad > 0 else 1.0},
        "dropped": dict(sorted((reason, count) for reason, count in selection.dropped.items() if count)),
        "not_enough": not_enough(rows),
        "redaction": redact.VERSION if rules.is_redacted else None,
        "split": {"valid_share": 0.1, "salt_id": hashlib.sha256(rules.salt.encode()).hexdigest()[:8]},
        "thinking": "none: every answer is trained without a thought, and the rendered prompt holds an empty one",
        "commands": {kind: lines for kind, lines in COMMANDS.items() if any(one.row.kind == kind for one in rows)},
    }


def _intents(rows: Sequence[Example]) -> Json:
    """How many things these rows are about, the rows of the fullest, and the share that the three fullest make."""
    fullest = sorted(Counter(one.intent for one in rows).items(), key=lambda found: (-found[1], found[0]))
    share = sum(num for _, num in fullest[:NUM_FULLEST]) / max(1, len(rows))
    return {"num": len(fullest), "rows": dict(fullest[:NUM_SHOWN]), "fullest_share": round(share, 3)} if rows else {}


def not_enough(examples: Sequence[Example]) -> list[str]:
    """One sentence a format that there is too little for."""
    counts, labels = Counter(str(one.row.kind) for one in examples), Counter(one.row.label for one in examples if one.row.kind == "kto")
    said = [f"{counts[kind]} of {needed} {what} for {kind}" for kind, (needed, what) in NEEDED.items() if counts[kind] < needed]
    few = [(label, name) for label, name in ((True, "good"), (False, "bad")) if labels[label] < NEEDED_OF_EACH_LABEL]
    said += [f"{labels[label]} of {NEEDED_OF_EACH_LABEL} answers judged {name} for kto" for label, name in few]
    return said + ([f"{counts['dpo']} of {NEEDED_RM} pairs for a reward model"] if counts["dpo"] < NEEDED_RM else [])
