"""What all ranks know or do alike: small values on a CPU group of their own, which never waits behind the GPUs' queues."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from ziya.errors import UserError

T = TypeVar("T")


class Ranks:
    """All ranks of the run, or this process alone. Every method is collective."""

    def __init__(self) -> None:
        self.many = dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.many else 0
        # A slow disk may keep one rank for long while the others wait here.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(hours=2)) if self.many else None

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order of ranks."""
        if not self.many:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values

    def together(self, work: Callable[[], T]) -> T:
        """Do `work` on this rank; when it fails on any rank, UserError with the first one's reason on all."""
        result, reason, cause = None, None, None
        try:
            result = work()
        except Exception as error:
            reason, cause = told(error), error
        reasons = self.gather(reason)
        first = next((rank for rank, text in enumerate(reasons) if text is not None), None)
        if first is not None:
            if cause is not None and not isinstance(cause, (UserError, OSError, MemoryError)):
                raise cause  # a bug of ours keeps its traceback where it happened
            alone = len(set(reasons)) == 1
            raise UserError(reasons[first] if alone else f"rank {first}: {reasons[first]}") from cause
        return result  # type: ignore[return-value]

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, on all of them: on a shared disk one may still see what another sees no more."""
        found, reason = None, None
        if self.rank == 0:
            try:
                found = work()
            except UserError as error:
                reason = str(error)
        found, reason = self.gather((found, reason))[0]
        if reason is not None:
            raise UserError(reason)
        return found  # type: ignore[no-any-return]


def told(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.errno == 28:
        return "no space left on the disk: free some"
    return " ".join(str(error).split()) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
