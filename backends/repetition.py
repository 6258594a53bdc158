"""The loop detector: has a generation started to repeat itself without end?"""

LONGEST_PERIOD = 80
SHORTEST_LOOP = 96
REPEATS = 4
CHECK_EVERY = 8


def is_looping(token_ids: list[int], num_generated: int) -> bool:
    """True when the last tokens are one block of at most LONGEST_PERIOD tokens, said REPEATS times and for SHORTEST_LOOP tokens or more.

    Looks only every CHECK_EVERY tokens and only at generated ones, so a long list of equal rows in the prompt is no loop.
    """
    if num_generated < SHORTEST_LOOP or num_generated % CHECK_EVERY:
        return False
    last = token_ids[-1]
    for period in range(1, LONGEST_PERIOD + 1):
        if token_ids[-1 - period] != last:
            continue
        span = max(SHORTEST_LOOP, REPEATS * period)
        if span <= num_generated and token_ids[-span:-period] == token_ids[-span + period :]:
            return True
    return False
