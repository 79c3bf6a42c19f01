"""When a step is refused, and when the run goes back: every rank judges alike, from the same two numbers.

A step is skipped when its loss or gradient norm is not finite, or stands more than `sigma` deviations above the mean of the
last `window` accepted steps (OLMo 2 skips at 6 sigma over 128 steps). After `skips_in_a_row` skips the run rolls back to its
last checkpoint and leaves the bad batches out. The windows begin anew with each stage, and where an embeddings-only phase ends:
the norm of all gradients is several times that of the embeddings', which is no spike.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from training.config import StabilitySettings


@dataclass(frozen=True)
class Verdict:
    """What to do with a step; `reason` is empty for an accepted one."""

    skip: bool
    reason: str = ""


class Judge:
    """The windows of one stage. `bad`: data indices skipped since the last accepted step; `accepted`: steps since the windows
    began, which may be more than they hold."""

    def __init__(self, settings: StabilitySettings) -> None:
        self.settings = settings
        self.losses: deque[float] = deque(maxlen=settings.window)
        self.norms: deque[float] = deque(maxlen=settings.window)
        self.bad: list[int] = []
        self.accepted = 0

    def judge(self, loss: float, norm: float) -> Verdict:
        """Judge a step by its mean loss and its gradient norm before clipping; changes nothing."""
        if not math.isfinite(loss):
            return Verdict(True, f"loss {loss}")
        if not math.isfinite(norm) or norm < 0:  # DeepSpeed tells a norm that is not finite as -1
            return Verdict(True, f"gradient norm {norm}")
        for name, value, window in (("loss", loss, self.losses), ("gradient norm", norm, self.norms)):
            limit = self._limit(window)
            if value > limit:
                return Verdict(True, f"{name} {value:.4g} above {limit:.4g} ({self.settings.sigma:g} sigma)")
        return Verdict(False)

    def _limit(self, window: deque[float]) -> float:
        """Mean + sigma deviations of the window; infinite while too few steps were accepted to judge by."""
        if not self.settings.sigma or self.accepted < max(self.settings.warmup_steps, 8):
            return math.inf
        mean = math.fsum(window) / len(window)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in window) / len(window))
        # A window without spread (a toy, a constant loss) must not make rounding a spike.
        return mean + self.settings.sigma * max(deviation, 1e-3 * abs(mean))

    def accept(self, loss: float, norm: float) -> None:
        """Book an accepted step."""
        self.losses.append(loss)
        self.norms.append(norm)
        self.accepted += 1
        self.bad = []

    def forget(self) -> None:
        """Begin the windows anew: what comes is not to be measured by what was."""
        self.losses.clear()
        self.norms.clear()
        self.accepted = 0

    def skip(self, data_index: int) -> bool:
        """Book a skipped step; True when there have been so many in a row that the run must roll back."""
        self.bad.append(data_index)
        return len(self.bad) >= self.settings.skips_in_a_row

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        windows = {"losses": list(self.losses), "norms": list(self.norms)}
        return windows | {"bad": list(self.bad), "accepted": self.accepted}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.losses = deque(state["losses"], maxlen=self.settings.window)
        self.norms = deque(state["norms"], maxlen=self.settings.window)
        self.bad = list(state["bad"])
        self.accepted = state.get("accepted", len(self.losses))  # earlier checkpoints do not tell it
