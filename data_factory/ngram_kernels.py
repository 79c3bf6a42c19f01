"""Log10 probabilities of sentences under a compiled n-gram model (`ngram_table`).

What limits the speed is memory: a model of 5 million n-grams has 100 MB, and most steps read a line that no cache
holds. So several sentences are walked in turns, and each asks for the memory of its next step before the others have
their turn: 40 ns a word instead of 250 for such a model.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from data_factory.batches import I32, I64
from data_factory.ngram_table import Table, key_of

_LANES = 16  # sentences walked in turns: 8 are too few to hide the latency, 32 are no faster


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(typing_context: Any, table: Any, row: Any) -> Any:
    """Ask the processor for the memory of row `row` of a two-dimensional array; a hint, without any effect on
    values."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = builder.extract_value(array.strides, 0)
        pointer = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        address = builder.add(builder.ptrtoint(array.data, ir.IntType(64)), builder.mul(arguments[1], stride))
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        # Of the address: for reading, to be kept in all caches, data and not instructions.
        flags = [ir.Constant(word, 0), ir.Constant(word, 3), ir.Constant(word, 1)]
        builder.call(function, [builder.inttoptr(address, pointer), *flags])
        return context.get_dummy_value()

    return types.void(table, types.int64), generate


def score(words: I32, ends: I64, table: Table) -> npt.NDArray[np.float64]:
    """float64 [m]: log10 probability of each sentence with its start and end.

    `words`: int32, the word numbers of all sentences end to end; `ends`: int64 [m], where each ends. The float32
    values of the model are added in float64, in the order of the words: a sentence's value depends on it alone.
    """
    return np.asarray(_score(words, ends, table.root, table.states, table.slots, table.start, table.end))


@numba.njit(cache=True, inline="always")
def _float(bits):  # type: ignore[no-untyped-def]
    return np.uint32(bits).view(np.float32)


@numba.njit(cache=True)
def _score(words, ends, root, states, slots, start, last):  # type: ignore[no-untyped-def]
    result = np.zeros(len(ends))
    line = np.full(_LANES, -1, np.int64)  # the sentence of each lane, -1 when there is none left
    position, stop = np.zeros(_LANES, np.int64), np.zeros(_LANES, np.int64)
    word, state = np.zeros(_LANES, np.int64), np.zeros(_LANES, np.int64)
    slot = np.full(_LANES, -1, np.int64)  # where the word may be among the followers; -1 before the state was read
    limit = np.zeros(_LANES, np.int64)
    total = np.zeros(_LANES)
    waiting, active = 0, 0
    for lane in range(min(_LANES, len(ends))):
        line[lane], position[lane], stop[lane] = waiting, ends[waiting - 1] if waiting else 0, ends[waiting]
        state[lane] = start
        word[lane] = words[position[lane]] if position[lane] < stop[lane] else last
        waiting += 1
        active += 1
    while active:
        for lane in range(_LANES):
            if line[lane] < 0:
                continue
            here = state[lane]
            key = key_of(word[lane])
            found = False
            if slot[lane] >= 0:
                at = slot[lane]
                slot[lane] = -1
                while at < limit[lane] and slots[at, 0] < key:
                    at += 1
                if at < limit[lane] and slots[at, 0] == key:
                    total[lane] += _float(slots[at, 1])
                    here = np.int64(slots[at, 2])
                    found = True
            elif states[here, 3] & (np.uint32(1) << (key & np.uint32(31))):
                first = np.int64(states[here, 0])
                limit[lane] = states[here + 1, 0]
                at = first + np.int64((np.uint64(key) * np.uint64(limit[lane] - first)) >> np.uint64(32))
                slot[lane] = at
                _prefetch(slots, at)
                continue
            if not found:
                # Back off to the next shorter context; behind the empty one there is every word.
                total[lane] += _float(states[here, 2])
                here = np.int64(states[here, 1])
            while found or here == 0:
                if not found:
                    total[lane] += _float(root[word[lane], 0])
                    here = np.int64(root[word[lane], 1])
                found = False
                position[lane] += 1
                if position[lane] < stop[lane]:
                    word[lane] = words[position[lane]]
                elif position[lane] == stop[lane]:
                    word[lane] = last
                else:
                    result[line[lane]] = total[lane]
                    if waiting == len(ends):
                        line[lane] = -1
                        active -= 1
                        break
                    line[lane], position[lane], stop[lane] = waiting, ends[waiting - 1], ends[waiting]
                    waiting += 1
                    total[lane] = 0.0
                    here = np.int64(start)
                    word[lane] = words[position[lane]] if position[lane] < stop[lane] else last
            state[lane] = here
            _prefetch(states, here)
    return result
