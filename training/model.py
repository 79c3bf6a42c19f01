"""LLaMA on megatron-core's tensor-parallel layers: one chunk of it, as a pipeline stage holds it.

Activations are [T (or its part under sequence parallelism), 1, hidden], as megatron-core's schedules exchange them. The
model is called with a `Packed` micro-batch, so that the borders of documents reach the attention kernel of every layer
on every stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.utils.checkpoint import checkpoint

from training import attention, fused, rotary
from training.activation import swiglu
from training.architecture import Architecture
from training.layout import Layout
from training.loss import cross_entropy, head_logits
from training.norm import RMSNorm
from training.rows import Packed


@dataclass(frozen=True)
class Numerics:
    """How the same model is computed: dtype, attention kernel, fused kernels where they can run, recomputation (`none`,
    `attention`, `layer`), kernels that give the same bits each time (with `device.ask_deterministic`), loss chunk."""

    bf16: bool = True
    kernel: str = "auto"
    fused: bool = True
    recompute: str = "none"
    deterministic: bool = False
    loss_chunk: int = 1024
    z_loss: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and activations."""
        return torch.bfloat16 if self.bf16 else torch.float32


def core_config(shape: Architecture, layout: Layout, numerics: Numerics) -> TransformerConfig:
    """The settings that megatron-core's layers and schedules read."""
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_query_groups=shape.groups,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.chunks if layout.chunks > 1 else None,
        sequence_parallel=layout.sequence,
        params_dtype=numerics.dtype,
        pipeline_dtype=numerics.dtype,
        bf16=numerics.bf16,
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        # The loss is divided by the targets of the global batch before the backward pass: schedules must not divide again.
        calculate_per_token_loss=True,
        # Batched sends and interleaving swap two messages between the same ranks (measured: wrong losses, no error).
        overlap_p2p_comm=layout.chunks > 1,
        batch_p2p_comm=layout.chunks == 1,
        batch_p2p_sync=False,
        # Freed outputs are safe where sends are ordered by a stream; gloo still reads them.
        deallocate_pipeline_outputs=torch.cuda.is_available(),
        # Gradients of the embedding are added in one order; on CPUs they always are.
        deterministic_mode=numerics.deterministic and torch.cuda.is_available(),
    )


class Attention(torch.nn.Module):
    """Grouped-query attention; `qkv` rows are ordered by group: its query heads, its key head, its value head."""

    def __init__(self, shape: Architecture, config: TransformerConfig, numerics: Numerics) -> None:
        super().__init__()
        tensor = config.tensor_model_parallel_size
        self.head_dim, self.groups = shape.head_dim, shape.groups // tensor
        self.per_group = shape.heads // shape.groups
        width = (shape.heads + 2 * shape.groups) * shape.head_dim
        self.qkv = _column(shape.hidden, width, config, bias=shape.qkv_bias)
        self.out = _row(shape.heads * shape.head_dim, shape.hidden, config)
        self.kernel = attention.choose(numerics.kernel, bf16=numerics.bf16, deterministic=numerics.deterministic)
        self.rotate = fused.choose(rotary.rotate, numerics.fused)
        self.recompute = numerics.recompute == "attention"

    def forward(self, hidden: torch.Tensor, rows: Packed, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        mixed, _ = self.qkv(hidden)
        mixed = mixed.view(mixed.shape[0], self.groups, self.per_group + 2, self.head_dim)
        if self.recompute and torch.is_grad_enabled():
            seen = checkpoint(self._attend, mixed, rows, tables, use_reentrant=False, preserve_rng_state=False)
        else:
            seen = self._attend(mixed, rows, tables)
        output: torch.Tensor = self.out(seen)[0]
        return output

    def _attend(self, mixed: torch.Tensor, rows: Packed, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        query, key, value = mixed.split((self.per_group, 1, 1), dim=2)
        query = self.rotate(query.reshape(len(mixed), -1, self.head_dim), *tables)
        key = self.rotate(key[:, :, 0], *tables)
        return self.kernel(query, key, value[:, :, 0], rows).reshape(len(mixed), 1, -1)


class FeedForward(torch.nn.Module):
    """The feed-forward part with SwiGLU; `up` holds this rank's rows of the gate, then of the other half."""

    def __init__(self, shape: Architecture, config: TransformerConfig, numerics: Numerics) -> None:
        super().__init__()
        self.activation = fused.choose(swiglu, numerics.fused)
        self.up = _column(shape.hidden, 2 * shape.ffn, config)
        self.down = _row(shape.ffn, shape.hidden, config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down(self.activation(self.up(hidden)[0]))[0]
        return output


class Layer(torch.nn.Module):
    """Norm, attention, residual; norm, feed-forward, residual."""

    def __init__(self, shape: Architecture, config: TransformerConfig, numerics: Numerics) -> None:
        super().__init__()
        self.attention_norm = _norm(shape, config, numerics)
        self.attention = Attention(shape, config, numerics)
        self.mlp_norm = _norm(shape, config, numerics)
        self.mlp = FeedForward(shape, config, numerics)

    def forward(self, hidden: torch.Tensor, rows: Packed, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), rows, tables)
        output: torch.Tensor = hidden + self.mlp(self.mlp_norm(hidden))
        return output


def _norm(shape: Architecture, config: TransformerConfig, numerics: Numerics) -> RMSNorm:
    return RMSNorm(
        shape.hidden,
        shape.norm_eps,
        numerics.dtype,
        sequence_parallel=config.sequence_parallel,
        fuse=numerics.fused,
    )


def _column(inputs: int, outputs: int, config: TransformerConfig, bias: bool = False) -> Any:
    layer = tensor_parallel.ColumnParallelLinear(
        inputs, outputs, config=config, init_method=_nothing, bias=bias, gather_output=False
    )
    return _shared(layer, 0)


def _row(inputs: int, outputs: int, config: TransformerConfig) -> Any:
    layer = tensor_parallel.RowParallelLinear(
        inputs,
        outputs,
        config=config,
        init_method=_nothing,
        bias=False,
        input_is_parallel=True,
        skip_bias_add=False,
    )
    return _shared(layer, 1)


def _shared(layer: Any, dimension: int) -> Any:
    """Mark the weights as cut over the tensor group, which megatron-core does only where it draws them itself; DeepSpeed
    counts unmarked ones on the group's first rank alone when it takes the norm."""
    for weight in layer.parameters():
        if not hasattr(weight, "tensor_model_parallel"):
            tensor_parallel.set_tensor_model_parallel_attributes(weight, True, min(dimension, weight.dim() - 1), 1)
    return layer


def _nothing(weight: torch.Tensor) -> None:
    """Weights come from a checkpoint; nothing is drawn."""


class Llama(torch.nn.Module):
    """The chunk of layers number `chunk` of this pipeline stage, with the embedding or the head where they belong.

    `layers` is a mapping from the layer's number in the whole model (as a string) to the layer, so that every weight has
    one name in every layout.
    """

    def __init__(self, shape: Architecture, layout: Layout, numerics: Numerics, chunk: int = 0) -> None:
        super().__init__()
        self.shape, self.layout, self.numerics = shape, layout, numerics
        self.config = core_config(shape, layout, numerics)
        self.model_type = None  # megatron-core's schedules ask for it and do not use it
        self.vp_stage = chunk if layout.chunks > 1 else None
        stage = parallel_state.get_pipeline_model_parallel_rank()
        piece = chunk * layout.pipeline + stage
        count = shape.layers // (layout.pipeline * layout.chunks)
        self.first, self.last = piece == 0, piece == layout.pipeline * layout.chunks - 1
        if self.first:
            self.embedding = _shared(
                tensor_parallel.VocabParallelEmbedding(
                    shape.vocab_size,
                    shape.hidden,
                    init_method=_nothing,
                    config=self.config,
                    reduce_scatter_embeddings=layout.sequence,
                ),
                0,
            )
        self.layers = torch.nn.ModuleDict(
            {str(number): Layer(shape, self.config, numerics) for number in range(piece * count, (piece + 1) * count)}
        )
        if self.last:
            self.final_norm = _norm(shape, self.config, numerics)
            if not shape.tied:
                self.head = _column(shape.hidden, shape.vocab_size, self.config)
        self.rates: torch.Tensor
        self.register_buffer("rates", rotary.frequencies(shape), persistent=False)
        self._input: torch.Tensor | None = None

    def set_input_tensor(self, tensors: Any) -> None:
        """What the previous stage sent; called by the schedule before `forward`."""
        self._input = tensors[0] if isinstance(tensors, list) else tensors

    @property
    def head_weight(self) -> torch.Tensor:
        """This rank's rows of the output head."""
        weight: torch.Tensor = self.embedding.weight if self.shape.tied else self.head.weight
        return weight

    @property
    def first_row(self) -> int:
        """The vocabulary row at which this rank's part starts."""
        return int(parallel_state.get_tensor_model_parallel_rank()) * self.shape.vocab_size // self.layout.tensor

    def forward(self, rows: Packed) -> torch.Tensor:
        """Hidden states [T or its part, 1, hidden], after the final norm on the last chunk."""
        if self.first:
            hidden = self.embedding(rows.tokens[None]).contiguous()
            # The embedding of sequence parallelism comes transposed and scattered already.
            hidden = hidden if self.layout.sequence else hidden.transpose(0, 1).contiguous()
        else:
            assert self._input is not None
            hidden = self._input
        tables = rotary.tables(rows.positions, self.rates)
        for layer in self.layers.values():
            if self.numerics.recompute == "layer" and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, rows, tables, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = layer(hidden, rows, tables)
        return self.final_norm(hidden) if self.last else hidden

    def loss(self, hidden: torch.Tensor, rows: Packed, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(scale * summed loss of the unmasked targets, losses float32 [T]) from the last chunk's hidden states."""
        return cross_entropy(
            self._whole_rows(hidden),
            self.head_weight,
            rows.targets,
            rows.weights,
            scale=scale,
            z_loss=self.numerics.z_loss,
            first_row=self.first_row,
            used=self.shape.vocab_used,
            chunk=self.numerics.loss_chunk,
            group=parallel_state.get_tensor_model_parallel_group(),
        )

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [T, vocabulary], gathered over the tensor-parallel ranks; padding rows are minus infinity."""
        part = head_logits(self._whole_rows(hidden), self.head_weight, self.first_row, self.shape.vocab_used)
        return tensor_parallel.gather_from_tensor_model_parallel_region(part)

    def _whole_rows(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.layout.sequence:  # the backward pass sums the ranks' parts and cuts them again
            whole = tensor_parallel.gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
        else:
            whole = tensor_parallel.copy_to_tensor_model_parallel_region(hidden)
        result: torch.Tensor = whole[:, 0]
        return result


def build(shape: Architecture, layout: Layout, numerics: Numerics) -> list[Llama]:
    """The chunks that this process holds, weights not filled."""
    return [Llama(shape, layout, numerics, chunk) for chunk in range(layout.chunks)]
