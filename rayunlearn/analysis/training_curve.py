"""What the looks at a trial say while it trains: which of two is better, and the area under its
curve of utility over forgetting.
"""

import math
from collections.abc import Sequence


def constrained_rank(forgetting: float, violation: float) -> tuple[float, float]:
    """The order of two looks, lower is better: those that keep the floor by `forgetting`, after
    them the others by how much they violate it.

    The order is that of Deb 2000, "An efficient constraint handling method for genetic algorithms",
    equation 4. So forgetting alone never ranks: what destroys a model forgets first.

    Args:
        forgetting: the forgetting metric, NaN where it is not known.
        violation: floor - utility; the floor is kept at 0 or less. NaN where it is not known.

    Returns:
        Two numbers that compare as the looks do; what is not known comes last.

    Example:
        >>> kept, broken = constrained_rank(0.4, -0.1), constrained_rank(0.0, 0.3)
        >>> kept < broken
        True
    """
    if math.isnan(forgetting) or math.isnan(violation):
        return (math.inf, math.inf)
    return (violation, 0.0) if violation > 0 else (0.0, forgetting)


def forget_utility_area(forgetting: Sequence[float], utility: Sequence[float]) -> float | None:
    """Area under the curve of utility over forgetting, along the looks of one training.

    x is the share of the start's forgetting metric that is gone, y the share of the start's utility
    that is there, both cut to [0, 1]. Of the points those count that no other beats in both; they
    are joined by straight lines, the first one level back to x = 0, and beyond the last there is no
    area: what was never forgotten adds nothing. UPCORE (Patil et al. 2502.15082) compares
    trade-offs along training by such an area; shares of the start, so that it has no unit, and the
    front, so that a way back does not count twice, are our choice.

    Args:
        forgetting: the forgetting metric at each look, the start first; higher is more knowledge.
        utility: the utility metric at each.

    Returns:
        The area in [0, 1]; 1 is everything forgotten at no cost. None where the start is 0 in one
        of them, or with fewer than two looks.

    Example:
        >>> forget_utility_area([0.8, 0.4, 0.0], [0.9, 0.9, 0.45])
        0.875
    """
    if len(forgetting) < 2 or not forgetting[0] > 0 or not utility[0] > 0:
        return None
    import numpy as np

    forgotten = np.clip(1 - np.asarray(forgetting) / forgetting[0], 0.0, 1.0)
    retained = np.clip(np.asarray(utility) / utility[0], 0.0, 1.0)
    measured = np.isfinite(forgotten) & np.isfinite(retained)
    front: list[tuple[float, float]] = []
    # from the furthest back: a point stands where nothing further has kept as much
    for x, y in sorted(zip(forgotten[measured], retained[measured], strict=True), reverse=True):
        if not front or y > front[-1][1]:
            front.append((float(x), float(y)))
    front.append((0.0, front[-1][1]))
    xs, ys = zip(*reversed(front), strict=True)
    return float(np.trapezoid(ys, xs))
