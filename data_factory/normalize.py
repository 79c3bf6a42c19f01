"""placeholder until the kernels land (signatures are final)."""
from __future__ import annotations
import numpy as np
import numpy.typing as npt
from data_factory.batches import Spans, TextBatch
from data_factory.config import Normalize
def clean(t0: TextBatch, settings: Normalize) -> tuple[TextBatch, Spans]:
    raise NotImplementedError
def simplify(t1: TextBatch, protected: Spans, zh: npt.NDArray[np.bool_]) -> tuple[TextBatch, Spans]:
    raise NotImplementedError
