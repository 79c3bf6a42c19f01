"""The life of one rank: what it is asked to do, who listens to it, its process groups, its end. `trainer.py` is its work."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from training import run_folder, watch
from training.config import TrainConfig, load_config
from training.launch import absolute, only_one, share_lock
from ziya.config import parse
from ziya.errors import UserError
from ziya.progress import log


def main(argv: Sequence[str]) -> int:
    """Run this rank; never returns to the interpreter's own end, where libraries may wait for ranks that have gone."""
    number = int(os.environ["RANK"])
    try:
        config, stage, accepted, launch = _arguments(argv)
        if launch is None:
            run_folder.check(config)  # before anything is written there
    except UserError as error:  # bare launches only: `ziya-train` has parsed it before
        print(f"error: {error}" if number == 0 else "", file=sys.stderr, end="\n" if number == 0 else "")
        return 2
    config = absolute(config)
    run = Path(config.run)
    run.mkdir(parents=True, exist_ok=True)
    _quiet(run, number)
    watching = watch.Watch(run, number, launch, log)
    for known in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(known, watching.ask)
    try:
        if launch is not None:
            os.environ["OMP_NUM_THREADS"] = str(launch["threads"])
        how = _run(config, stage, accepted, bare=launch is None, watching=watching)
        watching.leave(how)
        code = 0
    except BaseException as error:  # whatever it is, the launching process tells it, once
        watch.write_error(run, number, error)
        if launch is None and number == 0:
            print(f"error: {error}", file=sys.stderr)
        code = 2 if isinstance(error, UserError) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _arguments(argv: Sequence[str]) -> tuple[TrainConfig, int, list[str], dict[str, Any] | None]:
    """(config, stage, accepted changes, launch.json or None under a bare launcher)."""
    parser = argparse.ArgumentParser(prog="deepspeed --module training", allow_abbrev=False)
    parser.add_argument("--launched", type=Path)
    parser.add_argument("--local_rank", type=int)
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--accept-change", nargs="+", action="extend", default=[])
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args(list(argv))
    if args.launched is not None:
        launch = watch.read(args.launched)
        if launch is None:
            raise UserError(f"{args.launched} cannot be read on this node: run must be a folder that all nodes share")
        return parse(TrainConfig, launch["config"], str(args.launched)), int(launch["stage"]), [], launch
    if args.config is None:
        raise UserError("--config CONFIG is missing: deepspeed --module training --stage 1 --config CONFIG")
    return load_config(args.config, args.overrides), args.stage, args.accept_change, None


def _quiet(run: Path, number: int) -> None:
    """What libraries print goes to RUN/logs/rank-N.log; rank 0 keeps Python's stderr, for progress and warnings."""
    (run / "logs").mkdir(exist_ok=True)
    file = os.open(run / "logs" / f"rank-{number}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    if number == 0:
        sys.stderr = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace", buffering=1)
    os.dup2(file, 1)
    os.dup2(file, 2)
    logging.basicConfig(stream=open(2, "w", encoding="utf-8", closefd=False), level=logging.WARNING)  # noqa: SIM115 - for good
    logging.captureWarnings(True)


def _run(config: TrainConfig, stage: int, accepted: list[str], *, bare: bool, watching: watch.Watch) -> str:
    """How the stage ended; `accepted`: of a bare launch, whose checks are made here."""
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():  # each machine knows its own; DeepSpeed reads it when it is imported
        os.environ["DS_ACCELERATOR"] = "cpu"
    from training import attention, device, layout, plan_at_start, preflight
    from training.architecture import read_architecture
    from training.trainer import Trainer

    run = Path(config.run)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    device.ask_deterministic(config.model.deterministic)
    device.prepare(config.parallel.tensor)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=config.launch.timeout_s))
    holding = contextlib.ExitStack()  # rank 0's share of RUN/lock, until the process ends

    def first() -> None:
        attention.check(config.model.kernel, bf16=config.model.precision == "bf16")
        if dist.get_rank() == 0 and bare:
            holding.enter_context(only_one(run))
            preflight.prepare(config, stage, dist.get_world_size(), accepted)
        elif dist.get_rank() == 0:
            holding.enter_context(share_lock(run))

    together(first)
    parts = preflight.layout_of(config, dist.get_world_size())
    layout.start_groups(parts)
    if dist.get_rank() == 0:
        plan_at_start.tell(config, read_architecture(Path(config.model.base)), parts, log)
    trainer = Trainer(config, stage, parts, watching)
    how, state = trainer.train()
    dist.barrier()
    if dist.get_rank() == 0:
        outcome = {"how": how, "stage": stage, "step": state.step, "tokens": state.tokens}
        watch.say(run, 0, watch.folder(run) / "outcome.json", outcome)
        log(f"stage {stage} {how} at step {state.step}: {state.stage_tokens:,} tokens of it, {state.tokens:,} in all")
    trainer.end(how)  # rank 0 may wait here for exports; no other rank waits for it any more
    return how


def together(work: Callable[[], Any]) -> Any:
    """Do `work` on each rank; a UserError of one is raised on all, with the first one's words."""
    import torch.distributed as dist

    result, reason = None, None
    try:
        result = work()
    except UserError as error:
        reason = str(error)
    reasons: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, reason)
    found = next((text for text in reasons if text is not None), None)
    if found is not None:
        raise UserError(found)
    return result
