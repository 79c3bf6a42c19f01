"""Inference of quantised fastText classifiers as kernels over whole batches of texts: bytes in, probabilities out.

The library takes one Python string a call and looks every n-gram up in a hash map: 0.3 ms for 1000 characters. Here the
product-quantised rows are decoded when the file is read (3 MB), a known word is one row (its own and its n-grams', summed
beforehand), and the row of an n-gram stands in a table under its bucket: a tenth of the time. Read are files of format
version 12 with hierarchical softmax, quantised rows and no word n-grams, as lid.176.ftz is; `Classifier.read` returns
None for others, which are left to the library. Probabilities equal the library's but for rounding (tests compare both).

Sources: Bojanowski et al. 2017 (words as bags of character n-grams), Joulin et al. 2016 (product quantisation and pruning),
and the model format as fastText writes it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from data_factory.batches import F32, I32, I64, U8

MAGIC, VERSION = 793712314, 12
HIERARCHICAL_SOFTMAX, SUPERVISED = 1, 3
HEAD = 92  # bytes of arguments and counts before the vocabulary
LABEL = b"__label__"
END_OF_TEXT = b"</s>"  # a word of the vocabulary: stands for the newline that closes every text
CODES = 256  # centroids of a sub-quantiser
FNV_START = 2166136261
EPSILON = 1e-5  # fastText takes log(p + 1e-5) of every branch

_LABEL = tuple(LABEL)


@dataclass(frozen=True)
class Classifier:
    """A model in the form that the kernels read, of `d` dimensions and `k` labels.

    `labels`: names without their prefix [k].
    `words`: slot -> number of a word or -1, int32 [power of two]; `word_bytes` uint8 and `word_offsets` int64 [w + 1]:
    their spelling; `word_rows` float32 [w, d]: row of the word and rows of its n-grams, summed; `word_counts` int32 [w]:
    how many rows that are; `closing`: number of the word `END_OF_TEXT`.
    `buckets`: bucket -> row of `rows` or -1, int32; `kept`: the same as one bit a bucket; `rows` float32 [n-grams, d];
    `lengths`: shortest and longest n-gram, characters.
    `tree`: children of the inner nodes, the root last, int32 [k - 1, 2] (leaves are 0..k-1, inner nodes follow);
    `output` float32 [k - 1, d]: weights of the second child.
    """

    labels: tuple[str, ...]
    words: I32
    word_bytes: U8
    word_offsets: I64
    word_rows: F32
    word_counts: I32
    closing: int
    buckets: I32
    kept: U8
    rows: F32
    lengths: tuple[int, int]
    tree: I32
    output: F32

    @classmethod
    def read(cls, path: Path) -> Classifier | None:
        """From a model file; None when it is of a kind that the kernels lack, or damaged."""
        try:
            return _parse(path.read_bytes())
        except (struct.error, IndexError, ValueError):
            return None

    def probabilities(self, data: U8, offsets: I64) -> F32:
        """Probability of every label for every text, float32 [n, k]; text i is data[offsets[i]:offsets[i + 1]], UTF-8,
        up to its first newline. A row may sum to a little more than 1 (`EPSILON`).
        """
        out = np.empty((len(offsets) - 1, len(self.labels)), np.float32)
        scratch = _scratch(int(np.diff(offsets).max(initial=0)), self.lengths[1])
        _classify(
            data, offsets, self.words, self.word_bytes, self.word_offsets, self.word_rows, self.word_counts, self.closing,
            self.buckets, self.kept, self.rows, *self.lengths, self.tree, self.output, *scratch, out,
        )  # fmt: skip
        return out


def _scratch(widest: int, longest: int) -> tuple[U8, I32]:
    """Room for a token of `widest` bytes in < and >, and for its n-grams of up to `longest` characters."""
    return np.empty(widest + 2, np.uint8), np.empty((widest + 2) * longest, np.int32)


def _parse(file: bytes) -> Classifier | None:
    """The sections of a model file in their order: arguments, vocabulary, kept buckets, rows, output."""
    magic, version, d, *_, order, loss, model, modulus, shortest, longest, _ = struct.unpack_from("<14i", file, 0)
    entries, w, k, _, pruned = struct.unpack_from("<3i2q", file, 64)
    kind = (magic, version, loss, model, order)
    if kind != (MAGIC, VERSION, HIERARCHICAL_SOFTMAX, SUPERVISED, 1) or pruned < 0 or entries != w + k or k < 2:
        return None

    starts, ends, counts = (np.zeros(entries, np.int64) for _ in range(3))
    position = _vocabulary(np.frombuffer(file, np.uint8), HEAD, starts, ends, counts)
    spelled = [file[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    closing = spelled.index(END_OF_TEXT)
    if position < 0 or closing >= w or not all(name.startswith(LABEL) for name in spelled[w:]):
        return None
    pairs = np.frombuffer(file, "<i4", 2 * pruned, position).reshape(-1, 2)
    if pruned and (pairs.min() < 0 or pairs[:, 0].max() >= modulus or pairs[:, 1].max() >= pruned):
        return None
    position += 8 * pruned

    quantised, with_norms, m, columns, size = struct.unpack_from("<??qqi", file, position)
    if not quantised or m != w + pruned or columns != d:
        return None
    codes = np.frombuffer(file, np.uint8, size, position + 22)
    centroids, position = _centroids(file, position + 22 + size)
    parts = len(centroids)
    rows = centroids[np.arange(parts), codes.reshape(m, parts)].reshape(m, d)
    if with_norms:
        norms = np.frombuffer(file, np.uint8, m, position)
        scale, position = _centroids(file, position + m)
        rows = rows * scale[0, norms]
    dense, leaves, columns = struct.unpack_from("<?qq", file, position)
    if dense or leaves != k or columns != d:
        return None
    output = np.frombuffer(file, "<f4", k * d, position + 17).reshape(k, d)[: k - 1].astype(np.float32)

    buckets = np.full(modulus, -1, np.int32)
    buckets[pairs[:, 0]] = pairs[:, 1]
    word_bytes = np.frombuffer(bytearray().join(spelled[:w]), np.uint8)  # writable, as texts are: one signature
    offsets = np.zeros(w + 1, np.int64)
    np.cumsum(ends[:w] - starts[:w], out=offsets[1:])
    classifier = Classifier(
        labels=tuple(name.removeprefix(LABEL).decode() for name in spelled[w:]),
        words=np.full(1 << (4 * w).bit_length(), -1, np.int32),
        word_bytes=word_bytes,
        word_offsets=offsets,
        word_rows=rows[:w].copy(),
        word_counts=np.ones(w, np.int32),
        closing=closing,
        buckets=buckets,
        kept=np.packbits(buckets >= 0, bitorder="little"),
        rows=np.ascontiguousarray(rows[w:]),
        lengths=(shortest, longest),
        tree=_tree(counts[w:].tolist()),
        output=output,
    )
    _prepare(
        word_bytes, offsets, closing, classifier.words, classifier.word_rows, classifier.word_counts, buckets,
        classifier.kept, classifier.rows, shortest, longest, *_scratch(int(np.diff(offsets).max()), longest),
    )  # fmt: skip
    return classifier


def _centroids(file: bytes, position: int) -> tuple[F32, int]:
    """A product quantiser: (centroids float32 [parts, 256, values of a part], position behind it)."""
    d, parts, width, last = struct.unpack_from("<4i", file, position)
    if d != parts * width or last != width:
        raise ValueError("the last part of a vector is narrower than the others")
    values = np.frombuffer(file, "<f4", d * CODES, position + 16)
    return values.reshape(parts, CODES, width).astype(np.float32), position + 16 + 4 * d * CODES


def _tree(counts: list[int]) -> I32:
    """Children of the inner nodes of the Huffman tree over labels with falling `counts`, int32 [k - 1, 2], root last.

    Ties matter: of a leaf and an inner node of equal count, the inner node is taken first.
    """
    k = len(counts)
    weights = counts + [10**15] * (k - 1)
    leaf, inner = k - 1, k
    tree = np.zeros((k - 1, 2), np.int32)
    for made in range(k - 1):
        for side in range(2):
            if leaf >= 0 and weights[leaf] < weights[inner]:
                tree[made, side] = leaf
                leaf -= 1
            else:
                tree[made, side] = inner
                inner += 1
        weights[k + made] = weights[tree[made, 0]] + weights[tree[made, 1]]
    return tree


@numba.njit(cache=True)
def _vocabulary(raw, position, starts, ends, counts):  # type: ignore[no-untyped-def]
    """Find the entries (bytes, 0, count int64, kind int8) from `position` on; returns the position behind them, or -1."""
    for entry in range(len(starts)):
        starts[entry] = position
        while position < len(raw) and raw[position] != 0:
            position += 1
        if position + 10 > len(raw):
            return -1
        ends[entry] = position
        for byte in range(8):
            counts[entry] |= np.int64(raw[position + 1 + byte]) << (8 * byte)
        position += 10
    return position


@numba.njit(cache=True, inline="always")
def _mixed(value, byte):  # type: ignore[no-untyped-def]
    """One step of FNV-1a, 32 bits, as fastText computes it: bytes from 0x80 on are sign-extended before they enter."""
    extended = np.uint64(byte) | (np.uint64(0xFFFFFF00) if byte >= 0x80 else np.uint64(0))
    return ((value ^ extended) * np.uint64(16777619)) & np.uint64(0xFFFFFFFF)


@numba.njit(cache=True)
def _find(data, start, end, words, word_bytes, word_offsets):  # type: ignore[no-untyped-def]
    """(number of a word or -1, its slot)."""
    mask = np.uint64(len(words) - 1)
    value = np.uint64(FNV_START)
    for i in range(start, end):
        value = _mixed(value, data[i])
    slot = value & mask
    while words[slot] >= 0:
        word = words[slot]
        first = word_offsets[word]
        if word_offsets[word + 1] - first == end - start:
            same = 0
            while same < end - start and word_bytes[first + same] == data[start + same]:
                same += 1
            if same == end - start:
                return word, slot
        slot = (slot + np.uint64(1)) & mask
    return -1, slot


@numba.njit(cache=True)
def _add_ngrams(data, start, end, buckets, kept, rows, shortest, longest, token, found, total):  # type: ignore[no-untyped-def]
    """Add the rows of a token's character n-grams, < and > put around it, to `total`; returns how many.

    Four n-grams of five were pruned: one bit each (`kept`, 250 kB) stays in the cache where the table does not. Rows are
    added after the search, so that waits for memory overlap.
    """
    size = end - start + 2
    token[0], token[size - 1] = 0x3C, 0x3E
    for i in range(start, end):
        token[i - start + 1] = data[i]
    modulus = np.uint64(len(buckets))
    count = 0
    for i in range(size):
        if token[i] & 0xC0 == 0x80:
            continue
        value = np.uint64(FNV_START)
        j = i
        for length in range(1, longest + 1):
            if j >= size:
                break
            value = _mixed(value, token[j])
            j += 1
            while j < size and token[j] & 0xC0 == 0x80:
                value = _mixed(value, token[j])
                j += 1
            if length < shortest or (length == 1 and (i == 0 or j == size)):
                continue
            bucket = value % modulus
            found[count] = bucket
            count += (kept[bucket >> np.uint64(3)] >> (bucket & np.uint64(7))) & 1
    for i in range(count):
        found[i] = buckets[found[i]]
    for i in range(count):
        row = found[i]
        for column in range(rows.shape[1]):
            total[column] += rows[row, column]
    return count


@numba.njit(cache=True)
def _prepare(  # type: ignore[no-untyped-def]
    word_bytes, offsets, closing, words, word_rows, word_counts, buckets, kept, rows, shortest, longest, token, found
):
    """Fill the table of words and add their n-grams to their rows; the end of a text has none."""
    for word in range(len(offsets) - 1):
        start, end = offsets[word], offsets[word + 1]
        _, slot = _find(word_bytes, start, end, words, word_bytes, offsets)
        words[slot] = word
        if word != closing:
            word_counts[word] += _add_ngrams(
                word_bytes, start, end, buckets, kept, rows, shortest, longest, token, found, word_rows[word]
            )


@numba.njit(cache=True, inline="always")
def _separates(byte):  # type: ignore[no-untyped-def]
    return byte in (0x20, 0x00) or 0x09 <= byte <= 0x0D


@numba.njit(cache=True)
def _is_label(data, start, end):  # type: ignore[no-untyped-def]
    """Whether a token begins with the prefix of labels: no word then."""
    same = 0
    while same < len(_LABEL) and start + same < end and data[start + same] == _LABEL[same]:
        same += 1
    return same == len(_LABEL)


@numba.njit(cache=True)
def _classify(  # type: ignore[no-untyped-def]
    data, offsets, words, word_bytes, word_offsets, word_rows, word_counts, closing, buckets, kept, rows, shortest,
    longest, tree, output, token, found, out,
):  # fmt: skip
    """out[i, label]: product of the branch probabilities on the way from the root to the label, at most 1."""
    k, d = len(tree) + 1, rows.shape[1]
    total = np.empty(d, np.float32)
    nodes = np.empty(2 * k - 1, np.float64)
    for text in range(len(offsets) - 1):
        i, end = offsets[text], offsets[text + 1]
        total[:] = word_rows[closing]
        count = 1
        while i < end and data[i] != 0x0A:
            if _separates(data[i]):
                i += 1
                continue
            start = i
            while i < end and not _separates(data[i]):
                i += 1
            if _is_label(data, start, i):
                continue
            word, _ = _find(data, start, i, words, word_bytes, word_offsets)
            if word == closing:
                break
            if word >= 0:
                for column in range(d):
                    total[column] += word_rows[word, column]
                count += word_counts[word]
            else:
                count += _add_ngrams(data, start, i, buckets, kept, rows, shortest, longest, token, found, total)
        nodes[2 * k - 2] = 1.0
        for inner in range(k - 2, -1, -1):
            product = 0.0
            for column in range(d):
                product += output[inner, column] * total[column]
            second = 1.0 / (1.0 + np.exp(-product / count))
            nodes[tree[inner, 0]] = nodes[k + inner] * (1.0 - second + EPSILON)
            nodes[tree[inner, 1]] = nodes[k + inner] * (second + EPSILON)
        for label in range(k):
            out[text, label] = min(nodes[label], 1.0)
