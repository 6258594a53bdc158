"""Honest numbers from few answers: what a comparison can show at all, and intervals around what it did show."""

from collections.abc import Sequence
from math import sqrt

import numpy as np

Z95, Z80 = 1.96, 0.84
RESAMPLES = 4000


def wilson(num_hits: float, num: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's interval of a share (JASA 22, 1927): right for small counts and for shares near 0 and 1. (0, 1) for nothing seen."""
    if not num:
        return 0.0, 1.0
    share, spread = num_hits / num, z * z / num
    half = z * sqrt(share * (1 - share) / num + spread / num / 4)
    return max(0.0, (share + spread / 2 - half) / (1 + spread)), min(1.0, (share + spread / 2 + half) / (1 + spread))


def paired_difference(before: Sequence[bool], after: Sequence[bool], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of (share after - share before) over the same questions, at least one: a percentile bootstrap over questions."""
    changes = np.asarray(after, float) - np.asarray(before, float)
    means = np.random.default_rng(seed).choice(changes, (RESAMPLES, len(changes))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def detectable(num: int, changed: float = 0.3) -> float:
    """The smallest difference that `num` paired questions show in four runs of five (80% power, two-sided 5%), when the verdict on a
    share `changed` of them differs (McNemar's test, normal approximation)."""
    return min(1.0, (Z95 + Z80) * sqrt(changed / num))
