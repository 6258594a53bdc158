"""Reasoning effort: how long a model may think before it answers."""

from typing import Literal

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]

# The part of max_tokens that may be thought, and a cap in tokens. What is left over is for the answer.
_BUDGETS: dict[Effort, tuple[float, int]] = {
    "none": (0.0, 0),
    "minimal": (1 / 8, 64),
    "low": (1 / 4, 512),
    "medium": (1 / 2, 2048),
    "high": (3 / 4, 8192),
    "xhigh": (7 / 8, 32768),
}


def thinking_budget(effort: Effort, max_tokens: int) -> int:
    """Thought tokens that this effort allows out of `max_tokens`; a higher effort never allows fewer."""
    part, cap = _BUDGETS[effort]
    return min(cap, int(part * max_tokens))
