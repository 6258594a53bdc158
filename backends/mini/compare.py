"""Both engines on the same questions: `python -m backends.mini.compare` says where greedy texts differ, and how fast each was."""

import argparse
import json
import sys
import time

from backends.mini.score import BY_HAND, HERE
from backends.mini.shop import load_shop, system_message
from backends.protocol import EngineOptions, Tokenizer
from backends.registry import make_backend, make_tokenizer
from backends.scheduler import Scheduler
from backends.sequence import CacheScope, SamplingParams, Sequence

FORMS = {"llama.cpp": HERE / "weights" / "kefu-mini.gguf", "mlx": HERE / "weights" / "mlx"}
MAX_NEW_TOKENS = 160


def questions(tokenizer: Tokenizer, count: int) -> list[tuple[str, list[int], int]]:
    """Return texts, prompts and how much of each prompt is shared: the first messages of the set written by hand."""
    lines = [json.loads(line) for line in BY_HAND.read_text(encoding="utf-8").splitlines()]
    found = []
    for line in lines[:: max(1, len(lines) // count)][:count]:
        shared = f"<|im_start|>system\n{system_message(load_shop(line['language']), line['language'])}<|im_end|>\n"
        asked = f"<|im_start|>user\n{line['turns'][0]}<|im_end|>\n<|im_start|>assistant\n<think>\n"
        public = tokenizer.encode(shared, special=True)
        found.append((line["turns"][0], public + tokenizer.encode(asked, special=True), len(public)))
    return found


def answers(form: str, count: int) -> tuple[list[list[int]], float]:
    """Return the greedy tokens of every question, one after the other, and tokens a second of the decode."""
    path = str(FORMS[form])
    tokenizer = make_tokenizer(path)
    backend = make_backend(EngineOptions(path, "kefu-mini", max_sequences=2, num_kv_tokens=4096, prompt_lookup=False))
    scheduler, written, seconds = Scheduler(backend), [], 0.0
    for number, (_, prompt, public) in enumerate(questions(tokenizer, count)):
        sampling = SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS)
        scheduler.submit(Sequence(number, prompt, len(prompt), sampling, CacheScope(public, "compare", str(number))))
        tokens: list[int] = []
        while scheduler.has_work:
            began = time.perf_counter()
            events = [event.token_id for event in scheduler.step() if event.token_id >= 0]
            seconds += time.perf_counter() - began if tokens else 0.0
            tokens += events
        written.append(tokens)
        sys.stderr.write(f"\r{form}: {number + 1} of {count}")
    sys.stderr.write("\n")
    backend.close()
    return written, sum(len(tokens) - 1 for tokens in written) / seconds


def main() -> None:
    """Parse arguments, answer with both engines, print the table and what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args()
    tokenizer = make_tokenizer(str(FORMS["llama.cpp"]))
    (first, first_speed), (second, second_speed) = (answers(form, args.count) for form in FORMS)
    for (asked, _, _), one, other in zip(questions(tokenizer, args.count), first, second, strict=True):
        if one != other:
            texts = [b"".join(tokenizer.token_bytes(token) for token in tokens).decode(errors="replace") for tokens in (one, other)]
            sys.stdout.write(json.dumps({"asked": asked, **dict(zip(FORMS, texts, strict=True))}, ensure_ascii=False) + "\n")
    same = sum(one == other for one, other in zip(first, second, strict=True))
    sys.stdout.write(f"same greedy text: {same} of {args.count}; llama.cpp {first_speed:.0f} tokens/s, MLX {second_speed:.0f} tokens/s\n")


if __name__ == "__main__":
    main()
