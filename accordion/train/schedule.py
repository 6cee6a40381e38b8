"""Learning-rate schedules."""


def warmup_stable_decay(step: int, *, steps: int, warmup: int, decay_share: float) -> float:
    """Factor of the learning rate at `step` (from 0): linear up, flat, linear down to a tenth (WSD).

    Args:
        steps: of the whole run.
        warmup: steps of the linear rise; the first step already learns.
        decay_share: share of all steps spent in the fall.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    fall = max(1, round(steps * decay_share))
    left = (steps - step) / fall
    return rise * (1.0 if left >= 1 else 0.1 + 0.9 * left)
