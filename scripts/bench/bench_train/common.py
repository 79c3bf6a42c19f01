"""What all measured systems share: shapes, synthetic packs, weights, a world of forty in one process, timing."""

from __future__ import annotations

import datetime
import gc
import importlib.util
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from training import device
from training.architecture import Architecture
from training.config import TrainConfig
from training.data import Dataset, open_dataset
from training.rows import Packed
from ziya.config import parse
from ziya.packs import pack_writer

SLICE = Architecture("llama", 5120, 13824, 20, 40, 40, 128, 39424, 39410, 4096)
TINY = Architecture("llama", 64, 160, 2, 4, 4, 16, 512, 500, 128)
CPU = Architecture("llama", 512, 1408, 8, 8, 8, 64, 8192, 8192, 2048)
RANKS = 40  # data-parallel ranks among which optimizer states are shared: AdamW on one fortieth of the weights
EOS = 2
ACCUMULATE = 8


@dataclass(frozen=True)
class Where:
    """The device of the measurement and how time is taken on it."""

    device: torch.device
    gpu: bool

    def now(self) -> float:
        """Seconds, after all queued work: of the clock on a GPU, of this process's CPU time without one."""
        if self.gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def free(self) -> None:
        """Give back what is no longer held, and start counting the peak anew."""
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Largest memory allocated since `free`, on a GPU."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.gpu else None


def here() -> Where:
    """The first GPU, else the CPU."""
    gpu = torch.cuda.is_available()
    return Where(torch.device("cuda", 0) if gpu else torch.device("cpu"), gpu)


@contextmanager
def world(ranks: int) -> Iterator[None]:
    """This process as rank 0 of `ranks` data-parallel ones that do not exist: collectives do nothing, so states are shared
    among forty and nothing is sent. One rank is a real gloo or nccl world."""
    from megatron.core import parallel_state

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    device.prepare()
    if ranks > 1:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def dataset(
    folder: Path, shape: Architecture, *, rows: int, micro: int, mean: int, seed: int = 0
) -> tuple[Dataset, TrainConfig]:
    """A synthetic pack of documents of about `mean` tokens (log-normal lengths), and a config that reads it."""
    rng = np.random.default_rng(seed)
    length = shape.positions
    prefix = folder / f"pack-{mean}-{rows}"
    with pack_writer(prefix, length, np.uint16) as writer:
        for _ in range(max(64, rows)):
            sizes = _lengths(rng, length, mean)
            tokens = rng.integers(3, shape.vocab_used, length).astype(np.uint16)
            tokens[np.cumsum(sizes) - 1] = EOS
            writer.add(tokens, sizes, np.array([len(sizes)]))
    config = parse(
        TrainConfig,
        {
            "model": {"base": "none"},
            "data": {
                "sources": [{"name": "synthetic", "packs": [str(prefix)]}],
                "sequence_length": length,
                "global_batch_rows": rows,
                "micro_batch_rows": micro,
                "eos_id": EOS,
            },
            "stages": [{"number": 1, "tokens": 1e12, "weights": {"synthetic": 1.0}}],
        },
        "the benchmark",
    )
    made = open_dataset(config, config.seed, 1, cache=folder / "index", eos_id=EOS, vocab_size=shape.vocab_used)
    return made, config


def _lengths(rng: np.random.Generator, total: int, mean: int) -> Any:
    if mean >= total:
        return np.array([total])
    sizes: list[int] = []
    while sum(sizes) < total:
        sizes.append(max(8, int(rng.lognormal(np.log(mean), 0.7))))
    sizes[-1] -= sum(sizes) - total
    if sizes[-1] < 2 and len(sizes) > 1:
        short = sizes.pop()
        sizes[-1] += short
    return np.array(sizes)


def moved(rows: Packed, where: Where) -> Packed:
    """The same micro-batch on the measured device."""
    values = {name: value.to(where.device) for name, value in vars(rows).items() if isinstance(value, torch.Tensor)}
    return replace(rows, **values)


def document_mask(rows: Packed, row: int) -> torch.Tensor:
    """bool [rows of the micro-batch, 1, row, row]: causal inside documents; what SDPA must be given for packed rows."""
    number = torch.zeros(len(rows.tokens), dtype=torch.int32, device=rows.tokens.device)
    number[rows.borders[1:-1].long()] = 1
    number = number.cumsum(0).view(-1, row)
    causal = torch.ones(row, row, dtype=torch.bool, device=number.device).tril()
    return (number[:, None, :, None] == number[:, None, None, :]) & causal


def hf_model(shape: Architecture, where: Where, dtype: torch.dtype) -> Any:
    """transformers' LLaMA of this shape with random weights, SDPA; the same weights at every call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.positions,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(where.device):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def matrix_rate(shape: Architecture, where: Where, dtype: torch.dtype, tokens: int) -> float:
    """TFLOPS of the products of one layer's forward pass together, each as large as in a step."""
    products = [
        (shape.hidden, (shape.heads + 2 * shape.groups) * shape.head_dim),
        (shape.heads * shape.head_dim, shape.hidden),
        (shape.hidden, 2 * shape.ffn),
        (shape.ffn, shape.hidden),
    ]
    seconds = work = 0.0
    for inner, outer in products:
        left = torch.randn(tokens, inner, dtype=dtype, device=where.device)
        right = torch.randn(outer, inner, dtype=dtype, device=where.device)
        seconds += shortest(where, lambda left=left, right=right: left @ right.t())
        work += 2.0 * tokens * inner * outer
    return work / seconds / 1e12


def shortest(where: Where, call: Callable[[], Any], rounds: int = 5) -> float:
    """Median seconds of a call, ten calls a round on a GPU."""
    calls = 10 if where.gpu else 1
    call()
    times = []
    for _ in range(rounds):
        start = where.now()
        for _ in range(calls):
            call()
        times.append((where.now() - start) / calls)
    return float(np.median(times))


def about(where: Where) -> dict[str, Any]:
    """Date, machine, versions, commit."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    names = ("torch", "transformers", "deepspeed", "megatron-core", "flash-attn")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": torch.cuda.get_device_name() if where.gpu else f"{_processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _version(name: str) -> str | None:
    found = importlib.util.find_spec(name.replace("-", "_").replace("megatron_core", "megatron")) is not None
    try:
        return metadata.version(name) if found else None
    except metadata.PackageNotFoundError:
        return None
