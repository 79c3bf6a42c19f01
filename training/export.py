"""A checkpoint as a Hugging Face folder: fragments -> whole weights -> shards, one weight at a time, in one process.

`ziya.json` in the folder tells where the model comes from. Weights are the FP32 masters, rounded once; for a run in BF16 they
equal the weights it computed with. Padding rows of the vocabulary are cut off.
"""

from __future__ import annotations

import filecmp
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from training.architecture import Architecture, hf_config
from training.checkpoint import find, whole_checkpoints
from training.hf_files import write_weights
from training.reshard import MASTER, Stored, native_names
from training.run_folder import check_parents
from training.samples import SAMPLES_TEXT, tokenizer_file, write_samples
from ziya.errors import UserError
from ziya.exports import ABOUT, SAMPLES, TOKENIZER_FILES, ExportFile, is_export, read_export, write_export
from ziya.files import read_json, write_json

COMPANIONS = (*TOKENIZER_FILES, "chat_template.jinja", "generation_config.json")
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def export(
    run: Path,
    step: int | None = None,
    out: Path | None = None,
    *,
    average: int = 1,
    keep_padding: bool = False,
    dtype: Literal["bf16", "fp32"] = "bf16",
    base: Path | None = None,
    samples: bool = False,
    log: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> Path:
    """Write the checkpoint of `step` (None: the latest) to `out` (None: RUN/exports/step-N); the folder written.

    `average`: FP32 mean of the masters of so many checkpoints, this one and those saved before it. `base`: folder of the
    tokenizer and generation settings (None: the model.base that the run was started with). `samples`: let the model write on
    (`training.samples`). An earlier export at `out` is replaced once the new one is whole, and stays, with its
    samples, where the new one is the same. Needs no process group.
    Raises UserError: no or damaged checkpoints, `out` taken, samples without a tokenizer.
    """
    last = find(run, step)
    if last is None:
        raise UserError(f"{run} has no checkpoint to export: give the folder of a run that has trained")
    stored = _averaged(run, last, average)
    out = out if out is not None else run / "exports" / f"step-{last.step}"
    check_parents(out, f"--out {out}")
    if out.exists() and not (out / ABOUT).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is no export: give another folder")
    for one in stored:
        one.verify()
    shape = last.shape if keep_padding else replace(last.shape, vocab_size=last.shape.vocab_used)
    if shape.vocab_size > shape.vocab_used:
        log(
            f"warning: {shape.vocab_size - shape.vocab_used} padding rows are kept: a sampler may draw ids without a token"
        )
    if base is None:
        base = Path(str(last.manifest.extras.get("config", {}).get("model", {}).get("base", "")) or "/nonexistent")
    if samples:
        tokenizer_file(base)
    about = _about(stored, shape, dtype)
    temporary = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write_weights(temporary, _tensors(stored, shape, _DTYPES[dtype]))
        write_json(temporary / "config.json", _config(shape, base, dtype, log))
        copied = [name for name in COMPANIONS if (base / name).is_file()]
        for name in copied:
            shutil.copyfile(base / name, temporary / name)
        if not any(name.startswith("tokenizer") for name in copied):
            log(f"warning: {base} holds no tokenizer: copy the tokenizer's files to {out} before use")
        if samples:
            write_samples(temporary)
        write_export(temporary, about)
        if not samples and _same(temporary, out):  # samples that lie there were made by this very model
            log(f"{out} holds this export already: it stays as it is")
            shutil.rmtree(temporary)
            return out
        _tell_replaced(out, about, log)
        _put(temporary, out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno == 28:
            raise UserError(f"no space left on the disk that holds {out}: free some and run again") from error
        raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return out


def _averaged(run: Path, last: Stored, average: int) -> list[Stored]:
    """`last` and the average - 1 checkpoints saved before it, oldest first."""
    if average < 1:
        raise UserError(f"average {average}: give 1 or more")
    before = [one for one in whole_checkpoints(run) if one.manifest.serial <= last.manifest.serial]
    if len(before) < average:
        raise UserError(f"{run} keeps {len(before)} checkpoints up to step {last.step}, {average} are to be averaged")
    chosen = before[-average:]
    other = [one.step for one in chosen if one.shape != last.shape]
    if other:
        raise UserError(f"{run}: the checkpoint of step {other[0]} is of another model than that of step {last.step}")
    return chosen


def _tensors(stored: Sequence[Stored], shape: Architecture, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Hugging Face name, tensor of `dtype`, in the model's order; vocabulary rows as many as `shape` has."""
    for name in native_names(shape):
        total = stored[0].whole(name, MASTER)
        for one in stored[1:]:
            for key, tensor in one.whole(name, MASTER).items():
                total[key] = total[key] + tensor
        for key, tensor in total.items():
            mean = tensor / len(stored) if len(stored) > 1 else tensor
            if name in ("embedding.weight", "head.weight"):
                mean = mean[: shape.vocab_size]
            yield key, mean.to(dtype).clone()


def _config(shape: Architecture, base: Path, dtype: str, log: Callable[[str], None]) -> dict[str, Any]:
    """config.json of the export: special tokens as in the base model."""
    config = hf_config(shape, dtype={"bf16": "bfloat16", "fp32": "float32"}[dtype])
    path = base / "config.json"
    if path.is_file():
        raw = read_json(path)
        config |= {key: raw[key] for key in _IDS if raw.get(key) is not None}
    padding = config.get("pad_token_id")
    if isinstance(padding, int) and padding >= shape.vocab_size:
        log(f"warning: pad_token_id {padding} of {path} is a padding row and is left out")
        del config["pad_token_id"]
    return config


def _same(made: Path, out: Path) -> bool:
    """Whether `out` holds every file of the folder `made` with the same bytes."""
    return all((out / path.name).is_file() and filecmp.cmp(path, out / path.name, False) for path in made.iterdir())


def _tell_replaced(out: Path, about: ExportFile, log: Callable[[str], None]) -> None:
    """One line when an export of other weights, or its samples, are about to go."""
    if not is_export(out):
        return
    try:
        before = _weights(read_export(out))
    except UserError:  # of another version or damaged: what it held is not known
        before = "what cannot be read"
    lost = [name for name in (SAMPLES, SAMPLES_TEXT) if (out / name).is_file()]
    log(f"{out}: the export of {before}{' with its samples' if lost else ''} is replaced by that of {_weights(about)}")


def _weights(about: ExportFile) -> str:
    steps = about.averaged_steps
    which = f"step {about.step}" if len(steps) == 1 else f"the mean of steps {', '.join(map(str, steps))}"
    return f"{which} ({about.dtype}, {about.architecture.get('vocab_size', '?')} rows)"


def _about(stored: Sequence[Stored], shape: Architecture, dtype: Literal["bf16", "fp32"]) -> ExportFile:
    last = stored[-1].manifest
    return ExportFile(
        step=last.step,
        stage=last.stage,
        tokens=last.tokens,
        averaged_steps=[one.step for one in stored],
        dtype=dtype,
        architecture=shape.to_json(),
    )


def _put(temporary: Path, out: Path) -> None:
    """Give the finished folder its name, in place of an earlier export."""
    former = out.with_name(f"{out.name}.old")
    shutil.rmtree(former, ignore_errors=True)
    if out.exists():
        out.rename(former)
    temporary.rename(out)
    shutil.rmtree(former, ignore_errors=True)


__all__ = ["COMPANIONS", "export"]
