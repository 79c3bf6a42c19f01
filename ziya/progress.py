"""Progress of long work: a bar with rate and time left on a terminal, plain log lines elsewhere (both on stderr)."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm


def log(message: str) -> None:
    """One plain line on stderr, above any bar."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


class Progress:
    """`with Progress("measure", total) as bar: bar.advance()`; `total` in `unit`s."""

    def __init__(self, label: str, total: int, unit: str = "unit", every_seconds: float = 15.0) -> None:
        self.label, self.total, self.unit, self.every = label, total, unit, every_seconds
        self.count = 0
        self._start = self._last = time.monotonic()
        self._bar = (
            tqdm(total=total, desc=label, unit=unit, file=sys.stderr, leave=False)
            if sys.stderr.isatty() and total > 1
            else None
        )

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units as done."""
        self.count += amount
        if self._bar is not None:
            self._bar.update(amount)
            return
        now = time.monotonic()
        if now - self._last >= self.every:
            self._last = now
            rate = self.count / (now - self._start)
            left = (self.total - self.count) / rate if rate else 0.0
            log(
                f"{self.label}: {self.count} of {self.total} {self.unit}s, {rate:.2g} {self.unit}s/s, {left:.0f} s left"
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if kind is None:
            log(
                f"{self.label}: {self.count} {self.unit}{'' if self.count == 1 else 's'} in {time.monotonic() - self._start:.1f} s"
            )
