"""The loop detector: has a generation started to repeat itself without end?"""

from collections import Counter

LONGEST_PERIOD = 80
SHORTEST_LOOP = 96
REPEATS = 4
CHECK_EVERY = 8
# The two measures of a stale stretch: phrases said again and again in any order, and whole passages said a third time.
CHECK_STALE_EVERY = 32
STALE_WINDOW = 128
HISTORY = 2048
STALE_SHARE = 0.9
PHRASE_TOKENS, PHRASE_TIMES = 6, 6
SEGMENT_TOKENS, SEGMENT_TIMES = 32, 3


def is_looping(token_ids: list[int], num_generated: int) -> bool:
    """True when the last `num_generated` tokens end in a loop. Looks only now and then, and never at the prompt.

    A loop is one block of at most LONGEST_PERIOD tokens, said REPEATS times and for SHORTEST_LOOP tokens or more; or STALE_WINDOW tokens of
    which nearly all belong to phrases, or to segments, that were said so many times within the last HISTORY tokens. A list of rows
    that differ somewhere is no loop.
    """
    if num_generated < SHORTEST_LOOP or num_generated % CHECK_EVERY:
        return False
    if _is_periodic(token_ids, num_generated):
        return True
    if num_generated < STALE_WINDOW or num_generated % CHECK_STALE_EVERY:
        return False
    recent = token_ids[-min(num_generated, HISTORY) :]
    return _is_stale(recent, PHRASE_TOKENS, PHRASE_TIMES) or _is_stale(recent, SEGMENT_TOKENS, SEGMENT_TIMES)


def _is_periodic(token_ids: list[int], num_generated: int) -> bool:
    last = token_ids[-1]
    for period in range(1, LONGEST_PERIOD + 1):
        if token_ids[-1 - period] != last:
            continue
        span = max(SHORTEST_LOOP, REPEATS * period)
        if span <= num_generated and token_ids[-span:-period] == token_ids[-span + period :]:
            return True
    return False


def _is_stale(token_ids: list[int], length: int, times: int) -> bool:
    grams = list(zip(*(token_ids[start:] for start in range(length)), strict=False))
    counts = Counter(grams)
    return sum(counts[gram] >= times for gram in grams[-STALE_WINDOW:]) >= STALE_SHARE * STALE_WINDOW
