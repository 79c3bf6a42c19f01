"""Every setting of a training run, in the order of the flow. `fixed` ones are part of a run's identity: a resume with
another value is refused by name (`--accept-change NAME` overrides); `free` ones may change whenever a run is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from ziya.config import Settings, load, required
from ziya.config import deciding as free
from ziya.config import measuring as fixed


class ModelSettings(Settings):
    """What is trained."""

    base: str = required("Hugging Face folder to start from: what `ziya-train init` left, or a base model")
    shape: str | None = free(
        None, "config.json of base's shape, for `ziya-train plan` where base is not there yet (configs/models/)"
    )
    kernel: Literal["auto", "flash", "torch", "plain"] = free(
        "auto",
        "attention kernel: flash-attn or torch's variable-length one (GPU, BF16), or SDPA per document; auto takes the best here",
    )
    fused: bool = free(True, "fused RMSNorm, RoPE and SwiGLU on GPUs; they equal the plain ones within rounding")
    recompute: Literal["none", "attention", "layer"] = free(
        "none", "activations computed again in the backward pass: none, attention only, or whole layers"
    )
    loss_chunk: int = free(1024, "tokens whose logits are in memory at once", ge=1)
    deterministic: bool = free(
        True, "on GPUs: only kernels that give the same bits each time, which an exact resume needs; CPUs have no others"
    )
    precision: Literal["bf16", "fp32"] = fixed(
        "bf16", "bf16: BF16 compute with FP32 masters, accumulation and reduction; fp32 for small models and tests"
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if str(value).lower() in ("fp16", "float16", "half", "16"):
            raise ValueError(
                "FP16 is refused: Ziya2 was begun in it, and overflows gave loss spikes late in training that BF16 ended; set bf16"
            )
        return value


class ParallelSettings(Settings):
    """Who holds what; another layout resumes through resharding."""

    tensor: int = free(1, "tensor-parallel size", ge=1)
    sequence: bool = free(False, "sequence parallelism inside the tensor group")
    pipeline: int = free(1, "pipeline-parallel size", ge=1)
    chunks: int = free(1, "model pieces per pipeline stage; above 1 the schedule is interleaved", ge=1)
    zero: Literal[0, 1, 2, 3] = free(
        1, "ZeRO stage: 1 anywhere; 2 (gradients cut up too) and 3 (weights too) without pipeline; 0 is refused"
    )


class LaunchSettings(Settings):
    """How processes are started."""

    processes: int | None = free(None, "processes per node (null: one per GPU, 1 without GPUs)", ge=1)
    hostfile: str | None = free(None, "DeepSpeed hostfile for several nodes", is_file=True)
    port: int | None = free(None, "port of the rendezvous (null: a free one)", ge=1, le=65535)
    threads: int | None = free(None, "CPU threads per process (null: cores / processes)", ge=1)
    timeout_s: float = free(1800.0, "seconds after which a silent collective ends the run", gt=0)


class SourceSettings(Settings):
    """One pack, or several with the same role."""

    name: str = required("name, unique in the run; ledger, metrics and mixtures use it")
    packs: list[str] = required("prefixes (paths without .bin) of packs, or of plain Megatron indexed datasets")
    language: str = fixed("any", "language group for the mixture")
    tier: str = fixed("any", "tier inside the language for the mixture")
    order: Literal["shuffled", "perplexity"] = fixed(
        "shuffled", "rows in a seeded permutation, or by rising mean perplexity of their documents (first epoch)"
    )
    answers_only: bool = fixed(False, "mask the targets inside prompts")
    visible: Literal["document", "row"] = fixed(
        "document", "what a token sees: its own document, or all documents of its row (supervised rows)"
    )


class DataSettings(Settings):
    """Which rows make a batch. All of it is the recipe: no setting here depends on the layout."""

    sources: list[SourceSettings] = required("what can be read; the stages say how much of each")
    sequence_length: int = fixed(4096, "tokens of a row; must equal the packs'", ge=8)
    global_batch_rows: int = fixed(640, "rows of one optimizer step", ge=1)
    restart_positions: bool = fixed(True, "rotary positions restart with each document")
    micro_batch_rows: int = free(1, "rows flattened into one micro-batch", ge=1)
    workers: int = free(1, "threads that read ahead; never changes what is read", ge=0)
    eos_id: int | None = fixed(None, "border token of plain Megatron packs without a manifest (null: the tokenizer's)")


class OptimizerSettings(Settings):
    """AdamW; decay on matrices only. Values of the paper where it gives them."""

    beta1: float = fixed(0.9, "first moment", ge=0, lt=1)
    beta2: float = fixed(0.95, "second moment", ge=0, lt=1)
    epsilon: float = fixed(1e-8, "added to the root of the second moment", gt=0)
    weight_decay: float = fixed(0.1, "decoupled decay of matrices", ge=0)
    clip: float = fixed(1.0, "largest gradient norm; 0 never clips", ge=0)
    z_loss: float = fixed(0.0, "weight of the squared log-partition (OLMo 2: 1e-5)", ge=0)


class ScheduleSettings(Settings):
    """Learning rate over consumed (non-padding) tokens of the stage, or of all stages that a carried schedule joins."""

    kind: Literal["cosine", "wsd", "constant"] = fixed(
        "cosine", "cosine to `final`; warm-up, stable, 1-sqrt decay (2405.18392); or constant after warm-up"
    )
    peak: float = fixed(1e-4, "highest learning rate (not published for Ziya2)", gt=0)
    final: float = fixed(1e-5, "last learning rate", ge=0)
    warmup: float = fixed(0.01, "share of the stage's tokens with rising rate", ge=0, le=1)
    decay: float = fixed(0.2, "share of the stage's tokens that decay (wsd)", ge=0, le=1)


class ReplaySettings(Settings):
    """Rows of an earlier stage, as a multiple of this stage's own non-padding tokens."""

    stage: int = required("the earlier stage", ge=1)
    ratio: float = fixed(1.0, "tokens of it per token of this stage's own", gt=0)


class StageSettings(Settings):
    """One stage as data."""

    number: int = required("1, 2 or 3", ge=1)
    tokens: float = required("budget in non-padding tokens, replay included", gt=0)
    weights: dict[str, float] = required(
        "own sources -> share of the tokens; names of sources, or `language:NAME` and `tier:NAME` as groups (training/mixture.py)"
    )
    replay: list[ReplaySettings] = fixed([], "earlier stages drawn again, in a seeded permutation of their own")
    optimizer: Literal["carry", "restart"] = fixed(
        "restart", "moments of the stage before: carried on, or reset"
    )
    schedule_from: Literal["restart", "carry"] = fixed(
        "restart",
        "restart: the stage warms up anew, along its own schedule; carry: it goes on along the schedule that an earlier stage began, "
        "which then runs over the tokens of all stages that are joined so",
    )
    schedule: ScheduleSettings = fixed(ScheduleSettings, "learning rate; of a carried schedule the first stage's counts")
    embeddings_only_tokens: float = fixed(
        0.0,
        "tokens at the start during which only embedding and head move (Chinese-LLaMA); moments are reset before and after",
        ge=0,
    )
    embeddings_only_rows: Literal["new", "all"] = fixed("all", "which rows move meanwhile")
    init_from: str | None = free(None, "start from this Hugging Face folder or checkpoint, not from the stage before")


class StabilitySettings(Settings):
    """When a step is refused, and when the run goes back."""

    sigma: float = free(
        6.0, "a loss or gradient norm this many deviations above the window's mean is skipped; 0: never", ge=0
    )
    window: int = free(128, "steps of the window", ge=8)
    warmup_steps: int = free(32, "steps of a stage before sigma judges", ge=0)
    skips_in_a_row: int = free(5, "skips in a row after which the run rolls back to the last checkpoint", ge=1)
    rollbacks: int = free(3, "rollbacks after which the run ends with an error", ge=0)


class CheckpointSettings(Settings):
    """When state is written and what is kept."""

    every_steps: int | None = free(None, "steps between checkpoints (null: by tokens only)", ge=1)
    every_tokens: float | None = free(1e9, "non-padding tokens between checkpoints (null: by steps only)", gt=0)
    keep: int = free(3, "latest checkpoints kept; the last of each stage is always kept", ge=1)
    keep_every_tokens: float | None = free(None, "also keep one checkpoint each so many tokens", gt=0)
    background: bool = free(True, "write from a host copy while training goes on")
    export_every_tokens: float | None = free(None, "export to Hugging Face each so many tokens", gt=0)
    export_samples: bool = free(False, "let each such export write on from a few beginnings (samples.md)")


class TelemetrySettings(Settings):
    """What is told; failures here never stop training. metrics.jsonl is always written."""

    validation: dict[str, str] = free(
        {}, "name -> pack prefix of held-out rows; also measured with the starting model and at each stage's end"
    )
    validate_every_steps: int = free(500, "steps between validations", ge=1)
    validation_rows: int = free(64, "rows of each validation pack that are read, spread evenly over it", ge=1)
    tensorboard: bool = free(False, "TensorBoard events in RUN/tensorboard (package tensorboard)")
    wandb: str | None = free(None, "Weights & Biases project (package wandb); a resume goes on in the same run")
    peak_tflops: float | None = free(
        None, "the accelerator's dense BF16 peak, for the utilisation (null: known by name)", gt=0
    )


class TrainConfig(Settings):
    """A whole run: three stages in one folder."""

    run: str = free("run", "folder of checkpoints, metrics, ledger and exports")
    seed: int = fixed(1234, "of every permutation", ge=0)
    model: ModelSettings = required("what is trained")
    parallel: ParallelSettings = free(ParallelSettings, "layout")
    launch: LaunchSettings = free(LaunchSettings, "processes")
    data: DataSettings = required("rows")
    optimizer: OptimizerSettings = fixed(OptimizerSettings, "AdamW")
    stages: list[StageSettings] = required("the stages, in order")
    stability: StabilitySettings = free(StabilitySettings, "skips and rollbacks")
    checkpoint: CheckpointSettings = free(CheckpointSettings, "state on disk")
    telemetry: TelemetrySettings = free(TelemetrySettings, "what is told")

    @model_validator(mode="after")
    def _whole(self) -> TrainConfig:
        problems = []
        names = [source.name for source in self.data.sources]
        problems += [f"data.sources: {name} stands twice" for name in sorted({n for n in names if names.count(n) > 1})]
        numbers = [stage.number for stage in self.stages]
        if numbers != list(range(1, len(numbers) + 1)):
            problems.append(f"stages are numbered {numbers}: they must be 1, 2, ... in order")
        groups = {f"language:{s.language}" for s in self.data.sources} | {f"tier:{s.tier}" for s in self.data.sources}
        for stage in self.stages:
            unknown = sorted(set(stage.weights) - set(names) - groups)
            problems += [f"stage {stage.number} weights {name}, which no source is called" for name in unknown]
            problems += [
                f"stage {stage.number} replays stage {replay.stage}, which does not come before it"
                for replay in stage.replay
                if replay.stage >= stage.number
            ]
            if stage.schedule.final > stage.schedule.peak:
                problems.append(f"stage {stage.number}: schedule.final is above schedule.peak")
            if stage.schedule_from == "carry" and numbers == list(range(1, len(numbers) + 1)):
                problems += self._not_carried(stage)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _not_carried(self, stage: StageSettings) -> list[str]:
        """What keeps the stage from going on along an earlier stage's schedule."""
        if stage.number == 1:
            return ["stage 1: schedule_from is carry, and no stage comes before it: set restart"]
        first = self.joined(stage.number)[0]
        found = []
        if stage.schedule not in (first.schedule, ScheduleSettings()):
            found.append(
                f"stage {stage.number}: schedule_from is carry, so stage {first.number}'s schedule goes on: leave stage "
                f"{stage.number}'s own schedule out"
            )
        if stage.init_from is not None:
            found.append(
                f"stage {stage.number}: schedule_from is carry, so it goes on where the stage before ends: leave init_from out, or "
                f"set schedule_from to restart"
            )
        return found

    def joined(self, number: int) -> list[StageSettings]:
        """The stages with one schedule that stage `number` is among, in order: the first begins it, the others carry it on."""
        first = last = number
        while first > 1 and self.stage(first).schedule_from == "carry":
            first -= 1
        while last < len(self.stages) and self.stage(last + 1).schedule_from == "carry":
            last += 1
        return self.stages[first - 1 : last]

    def stage(self, number: int) -> StageSettings:
        """The stage called `number`."""
        return self.stages[number - 1]


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML config with dotted overrides; UserError tells every problem at once."""
    return load(TrainConfig, path, overrides)
