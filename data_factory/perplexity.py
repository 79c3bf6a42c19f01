"""AS: perplexity of documents under one KenLM model a language, over SentencePiece pieces (paper section AS; rules.md
Q09).

A model is three files: `zh.klm` (KenLM binary), `zh.klm.spm` (SentencePiece model) and `zh.klm.json` (manifest, written
last).
`ziya-data train-lm` makes them; this module refuses any set that does not belong together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kenlm
import numpy as np
import numpy.typing as npt
import sentencepiece

from data_factory import lm_kernels, lm_text
from data_factory.batches import F32, I64, U8, TextBatch
from ziya.errors import UserError
from ziya.files import digest, file_digest, read_json

FORMAT = 1  # of the manifest
_CHUNK_BYTES = (
    1 << 20
)  # lines are handed to SentencePiece in pieces of about this size, so that memory does not follow the batch


def side_cars(model: Path) -> tuple[Path, Path]:
    """The SentencePiece model and the manifest that stand beside a KenLM model."""
    return model.with_name(model.name + ".spm"), model.with_name(model.name + ".json")


def check_model(language: str, path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """The manifest of a model after checking that its three files are there and belong together.

    `verify` also hashes the two model files. Raises UserError for a missing file, another language, a changed file, or
    a model trained on text of another normaliser version.
    """
    model = Path(path)
    spm, manifest_path = side_cars(model)
    name = f"scoring.models.{language} = {model}"
    for file, what in ((model, "the KenLM model"), (spm, "its SentencePiece model"), (manifest_path, "its manifest")):
        if not file.is_file():
            raise UserError(
                f"{name}: {what} {file} is missing; train it with `ziya-data train-lm --lang {language} --output "
                f"{model}`"
            )
    manifest = read_json(manifest_path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(
            f"{manifest_path} is not a manifest of this version of train-lm (format {FORMAT}): train the model again"
        )
    if manifest["language"] != language:
        raise UserError(
            f"{name}: the model was trained for {manifest['language']!r}; give it as "
            f"scoring.models.{manifest['language']}"
        )
    if manifest["normaliser"] != lm_text.VERSION:
        raise UserError(
            f"{name}: the model was trained on text of normaliser version {manifest['normaliser']}, this program has "
            f"{lm_text.VERSION}: train it again"
        )
    if verify:
        for file, key in ((model, "model_digest"), (spm, "spm_digest")):
            if file_digest(file) != manifest[key]:
                raise UserError(
                    f"{name}: {file} is not the file that {manifest_path.name} describes; copy all three files of one "
                    f"training together"
                )
    return manifest


class Engine:
    """A KenLM model and its SentencePiece pieces, without a manifest.

    Probing models are read by our kernels, other structures by the KenLM library; pieces and scores are equal bit for
    bit.
    """

    def __init__(self, model: Path, spm: Path, *, library: bool = False) -> None:
        """Load both; `library` asks for the two C++ libraries in any case. UserError when a file is not what its name
        says."""
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(spm))
            probing = None if library else lm_kernels.ProbingModel.load(model)
            self._library: Any = kenlm.Model(str(model)) if probing is None else None
        except (OSError, RuntimeError) as error:
            message = " ".join(str(error).split())
            raise UserError(f"the language model {model} cannot be loaded ({message}): train it again") from error
        self._kernel = None if probing is None else lm_kernels.Kernel(probing, lm_kernels.Pieces.of(self._pieces))

    def score(self, data: U8, offsets: I64) -> tuple[npt.NDArray[np.float64], I64]:
        """(log10 probability, pieces), both [m], of lines as in `lm_text.Lines`, each with sentence start and end."""
        if self._kernel is not None:
            return self._kernel.score(data, offsets)
        score = self._library.score
        logs, counts = np.zeros(len(offsets) - 1), np.zeros(len(offsets) - 1, np.int64)
        first = 0
        while first < len(logs):
            last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _CHUNK_BYTES, side="right")) - 1)
            lines = data[offsets[first] : offsets[last]].tobytes().decode().split("\n")[:-1]
            encoded = self._pieces.encode(lines, out_type=str, num_threads=1)
            logs[first:last] = [score(" ".join(pieces)) for pieces in encoded]
            counts[first:last] = [len(pieces) for pieces in encoded]
            first = last
        return logs, counts


class Scorer:
    """Perplexity of T1 under the model of each document's language."""

    def __init__(self, models: Mapping[str, str], *, verify: bool = True) -> None:
        """Load `models` (language -> path of a .klm file). `verify` compares file hashes; raises UserError, see
        `check_model`."""
        self._manifests = {
            language: check_model(language, models[language], verify=verify) for language in sorted(models)
        }
        self._models = {
            language: Engine(Path(models[language]), side_cars(Path(models[language]))[0])
            for language in self._manifests
        }

    @property
    def languages(self) -> list[str]:
        """The languages with a model, sorted."""
        return list(self._models)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal characters that change with any model or with the normaliser, never with paths."""
        parts = [
            f"{name}:{manifest['model_digest']}:{manifest['spm_digest']}" for name, manifest in self._manifests.items()
        ]
        return digest("|".join([f"lm_text {lm_text.VERSION}", *parts]).encode())

    def score(self, t1: TextBatch, langs: Sequence[str]) -> F32:
        """Perplexity of each document, float32 [n]: 10^(-sum of log10 probabilities / (pieces + lines)), as in cc_net.

        `langs` [n]: language codes. NaN where the language has no model or the document has no text. A document's value
        depends on its own text alone.
        """
        return self.measure(t1, langs)[0]

    def measure(self, t1: TextBatch, langs: Sequence[str]) -> tuple[F32, F32]:
        """(perplexity, bits per character of normalised text), float32 [n] each, NaN as in `score`."""
        if len(langs) != len(t1):
            raise ValueError(f"{len(t1)} documents but {len(langs)} languages")
        perplexity = np.full(len(t1), np.nan, np.float32)
        bits = np.full(len(t1), np.nan, np.float32)
        codes = np.asarray(langs, dtype=object)
        for language, model in self._models.items():
            index = np.flatnonzero(codes == language)
            if len(index):
                perplexity[index], bits[index] = _measure(model, t1 if len(index) == len(t1) else _take(t1, index))
        return perplexity, bits


def _measure(model: Engine, t1: TextBatch) -> tuple[F32, F32]:
    lines = lm_text.lm_lines(t1)
    logs, tokens = model.score(lines.data, lines.offsets)
    # bincount adds in line order, in float64: the same sum for a document in any batch.
    total = np.bincount(lines.document, logs, len(t1))
    length = np.bincount(lines.document, tokens + 1, len(t1))
    starts = (lines.data & 0xC0) != 0x80  # first byte of every character; a line's newline stands for its end
    characters = np.add.reduceat(starts, lines.offsets[:-1], dtype=np.int64) if len(lines) else np.zeros(0, np.int64)
    chars = np.bincount(lines.document, characters, len(t1))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        perplexity = np.minimum(10.0 ** (-total / length), np.finfo(np.float32).max)
        bits = -total * np.log2(10.0) / chars
    return perplexity.astype(np.float32), bits.astype(np.float32)


def _take(batch: TextBatch, index: npt.NDArray[np.int64]) -> TextBatch:
    """The documents at `index`, copied."""
    parts = [batch.data[batch.offsets[i] : batch.offsets[i + 1]] for i in index]
    offsets = np.zeros(len(index) + 1, np.int64)
    np.cumsum(batch.lengths()[index], out=offsets[1:])
    return TextBatch(np.concatenate(parts), offsets)
