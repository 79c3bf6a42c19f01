"""What is computed once for a pack and kept in files: rows with padding, prompts, perplexities, the order by them.

Files lie in the cache folder and are named by the content they come from, so a changed pack never meets an old file. Without
a cache everything is computed in memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from ziya.errors import UserError
from ziya.files import TEMPORARY, atomic_path
from ziya.pack_files import piece_batches, pieces_path

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

_CHUNK = 1 << 24  # rows in memory at once
_COLUMNS = {"filled": np.dtype("<i4"), "prompts": np.dtype("<i4"), "perplexity": np.dtype("<f4")}


def rows_by_perplexity(
    perplexities: Sequence[npt.NDArray[np.float32]], name: str, cache: Path | None
) -> tuple[U32, U32] | None:
    """Rows by rising perplexity, equal ones by number, unknown ones last; and the place of each row, uint32 [rows] each.

    `perplexities`: of the rows of each pack; `name`: of their content. None when no row has any.
    """
    rows = sum(map(len, perplexities))
    if not any(np.any(values >= 0) for values in perplexities):
        return None

    def keys(sink: IO[bytes]) -> None:
        for values in perplexities:
            for first in range(0, len(values), _CHUNK):
                part = np.array(values[first : first + _CHUNK], np.float32) + np.float32(0)  # -0.0 becomes 0.0
                bits = part.view(np.uint32).copy()
                bits[~(part >= 0)] = 0xFFFFFFFF  # the bits of numbers that are not negative rise with them
                sink.write(bits.astype("<u4").tobytes())

    def sort(out: U32) -> None:
        with TemporaryDirectory(dir=cache, prefix=TEMPORARY) as folder:
            scratch = Path(folder) if cache is not None else None
            bits = _stored(scratch, "keys", np.dtype("<u4"), rows, keys)
            half = _kept(scratch, "half", rows, lambda half: _radix(bits, np.zeros(0, np.uint32), half, 0))
            _radix(bits, half, out, 16)

    order = _kept(cache, f"{name}-order", rows, sort)
    place = _kept(cache, f"{name}-place", rows, lambda out: _invert(order, out))
    return order, place


@numba.njit(cache=True, nogil=True)
def _radix(keys, before, after, shift):  # type: ignore[no-untyped-def]
    """One stable pass of a radix sort over 16 bits of `keys`; `before`: the order so far (empty: as they stand)."""
    counts = np.zeros(65537, np.int64)
    for row in range(len(keys)):
        counts[((keys[row] >> np.uint32(shift)) & np.uint32(0xFFFF)) + 1] += 1
    counts = np.cumsum(counts)
    for i in range(len(keys)):
        row = before[i] if len(before) else i
        digit = (keys[row] >> np.uint32(shift)) & np.uint32(0xFFFF)
        after[counts[digit]] = row
        counts[digit] += 1


@numba.njit(cache=True, nogil=True)
def _invert(order, place):  # type: ignore[no-untyped-def]
    for i in range(len(order)):
        place[order[i]] = i


def _map(path: Path, dtype: np.dtype[Any], size: int) -> npt.NDArray[Any]:
    """A file of `size` numbers as a read-only memory map."""
    return np.asarray(np.memmap(path, dtype, "r", shape=(size,))) if size else np.zeros(0, dtype)


def _stored(
    cache: Path | None, name: str, dtype: np.dtype[Any], size: int, write: Callable[[IO[bytes]], None]
) -> npt.NDArray[Any]:
    """`size` numbers that `write` writes: in memory without a cache, else in a file that is made once."""
    if cache is None:
        sink = io.BytesIO()
        write(sink)
        return np.frombuffer(sink.getvalue(), dtype)
    path = cache / name
    if not path.is_file() or path.stat().st_size != size * dtype.itemsize:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            write(file)
    return _map(path, dtype, size)


def _kept(cache: Path | None, name: str, size: int, fill: Callable[[Any], None]) -> U32:
    """uint32 [size] that `fill` fills in any order: in memory without a cache, else in a file that is made once."""
    dtype = np.dtype("<u4")
    if cache is None or not size:
        out = np.zeros(size, np.uint32)
        fill(out)
        return out
    path = cache / name
    if not path.is_file() or path.stat().st_size != size * 4:
        with atomic_path(path) as temporary:
            mapped = np.memmap(temporary, dtype, "w+", shape=(size,))
            fill(np.asarray(mapped))
            mapped.flush()
    return _map(path, dtype, size)


def pack_columns(
    prefix: Path, identity: str, sizes: I32, borders: I64, wanted: set[str], cache: Path | None
) -> dict[str, npt.NDArray[Any]]:
    """The wanted columns of _COLUMNS: filled and perplexity [samples], prompts [sequences]; one pass over the pieces."""
    lengths = {"filled": len(borders) - 1, "perplexity": len(borders) - 1, "prompts": len(sizes)}
    paths = {name: cache / f"{identity}-{name}" for name in wanted} if cache is not None else {}
    missing = sorted(
        name
        for name in wanted
        if cache is None
        or not paths[name].is_file()
        or paths[name].stat().st_size != lengths[name] * _COLUMNS[name].itemsize
    )
    found: dict[str, npt.NDArray[Any]] = {}
    if missing:
        with ExitStack() as stack:
            sinks: dict[str, IO[bytes]] = {}
            for name in missing:
                if cache is None:
                    sinks[name] = io.BytesIO()
                else:
                    sinks[name] = stack.enter_context(stack.enter_context(atomic_path(paths[name])).open("wb"))
            for columns in _piece_columns(prefix, sizes, borders, "perplexity" in missing):
                for name, sink in sinks.items():
                    sink.write(columns[name].astype(_COLUMNS[name]).tobytes())
            for name, sink in sinks.items():
                if isinstance(sink, io.BytesIO):
                    found[name] = np.frombuffer(sink.getvalue(), _COLUMNS[name])
    return found | {name: _map(path, _COLUMNS[name], lengths[name]) for name, path in paths.items()}


def _piece_columns(prefix: Path, sizes: I32, borders: I64, perplexity: bool) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Parts of the columns, in order, from the table of pieces, which must agree with the index."""
    names = ["sample", "id", "tokens", "prompt_tokens", *(["perplexity"] if perplexity else [])]
    first = 0
    carried = np.zeros(
        3
    )  # of the sample that a batch's end cut: tokens that are not padding, weighted perplexity, weight
    for batch in piece_batches(prefix, names, len(sizes)):
        sample = batch.column("sample").to_numpy().astype(np.int64)
        tokens = batch.column("tokens").to_numpy()
        prompts = batch.column("prompt_tokens").to_numpy()
        padding = pc.equal(pc.binary_length(batch.column("id")), 0).to_numpy(zero_copy_only=False)
        number = np.arange(first, first + len(sample))
        inside = (sample >= 0) & (sample < len(borders) - 1)
        ends = borders[np.where(inside, sample, 0) + 1]
        if not (
            inside.all()
            and (tokens == sizes[number]).all()
            and ((number >= borders[sample]) & (number < ends)).all()
            and ((prompts >= 0) & (prompts <= tokens)).all()
        ):
            raise UserError(
                f"{pieces_path(prefix)} does not tell of the pieces of its pack: copy both again or pack again"
            )
        if (padding & (number != ends - 1)).any():
            raise UserError(f"{prefix}: padding before the end of a sample; it must be the last piece: pack again")
        begin, count = int(sample[0]), int(sample[-1] - sample[0]) + 1
        real = np.where(padding, 0, tokens)
        sums = np.zeros((3, count))
        sums[0] = np.bincount(sample - begin, real, count)
        if perplexity:
            value = batch.column("perplexity").to_numpy(zero_copy_only=False)
            weight = np.where(np.isfinite(value), real, 0)
            sums[1] = np.bincount(sample - begin, np.where(weight > 0, value, 0.0) * weight, count)
            sums[2] = np.bincount(sample - begin, weight, count)
        sums[:, 0] += carried
        first += len(sample)
        done = count if first == borders[begin + count] else count - 1
        carried = sums[:, -1] if done < count else np.zeros(3)
        filled, total, weights = sums[:, :done]
        mean = np.divide(total, weights, out=np.full(done, np.nan), where=weights > 0)
        yield {"filled": filled, "prompts": prompts, "perplexity": mean}
