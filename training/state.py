"""Where a run stands: the counters that a checkpoint holds beside weights and moments."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class RunState:
    """`step`: optimizer updates of the whole run; `data_index`: next global batch of the stage; `tokens`, `stage_tokens`:
    consumed non-padding tokens; `carried_tokens`: those of earlier stages whose schedule this stage goes on along; `skipped`:
    data indices of this stage left out for good, as sorted [first, end) ranges, like the ledger's;
    `frozen`: whether the embeddings-only phase is on, or was when the stage ended whose moments may go on."""

    stage: int = 1
    step: int = 0
    data_index: int = 0
    tokens: int = 0
    stage_tokens: int = 0
    carried_tokens: int = 0
    rollbacks: int = 0
    frozen: bool = False
    exported_tokens: int = 0
    skipped: list[list[int]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunState:
        """The reverse of `to_json`."""
        return cls(**values)

    def next_stage(self, number: int) -> RunState:
        """The start of stage `number`: counters of the whole run go on, those of a stage begin anew. A phase that the stage
        ended in is not over: its moments are of embeddings alone until the thaw, which resets them."""
        return RunState(
            stage=number,
            step=self.step,
            tokens=self.tokens,
            frozen=self.frozen,
            exported_tokens=self.exported_tokens,
        )

    def leave_out(self, ranges: list[list[int]]) -> None:
        """Skip these [first, end) ranges of global batches of this stage whenever they come up."""
        self.skipped = sorted([*self.skipped, *(pair for pair in ranges if pair not in self.skipped)])

    def settle(self) -> None:
        """Move `data_index` past every range that is left out."""
        for first, end in self.skipped:  # in order, so that one pass is enough
            if first <= self.data_index < end:
                self.data_index = end
