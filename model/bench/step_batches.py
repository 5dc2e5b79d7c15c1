"""Synthetic batches and models of the step benchmark: the shape is what counts, the codes are random.

Legend: B requests, T history tokens, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from features.spec import CategoricalField, FeatureSpec
from kernels import lengths_to_offsets
from model.batch import Batch, Candidates, UIHStream
from model.config import ModelConfig

_STREAMS = ("consumption", "interaction")
_REQUEST_MS = 1_650_000_000_000


@dataclass(frozen=True)
class BenchShape:
    """The model and the batch; the defaults are for one H100.

    Attributes:
        dim, num_heads, head_dim: D, H, and A = V.
        max_length: of a history, the attention's divisor.
        num_layers, full_layers, keep: layers, of them at full length, and what the pyramid keeps for the others.
        window: K1 and K2.
        num_requests: B, all histories being full.
        num_candidates: of each request.
        num_items: rows of the item table.
    """

    dim: int = 512
    num_heads: int = 4
    head_dim: int = 128
    max_length: int = 16_384
    num_layers: int = 8
    full_layers: int = 3
    keep: int = 512
    window: int = 256
    num_requests: int = 8
    num_candidates: int = 20
    num_items: int = 1_000_000


TINY = BenchShape(
    dim=16,
    num_heads=2,
    head_dim=8,
    max_length=64,
    num_layers=3,
    full_layers=1,
    keep=8,
    window=4,
    num_requests=3,
    num_candidates=2,
    num_items=50,
)


def bench_spec(shape: BenchShape) -> FeatureSpec:
    """Eight fields a token, one large table."""

    def fields(**sizes: int) -> tuple[CategoricalField, ...]:
        return tuple(CategoricalField(name=name, size=size) for name, size in sizes.items())

    return FeatureSpec(
        actions=("is_click", "is_like", "long_view"),
        streams=_STREAMS,
        item_fields=fields(item=shape.num_items, author=max(shape.num_items // 5, 2), tag=64),
        user_fields=fields(user=1000, degree=10),
        token_contexts=fields(surface=16, hour=25, gap=32),
        candidate_contexts=fields(surface=16, hour=25),
        intensity_size=64,
    )


def bench_config(
    shape: BenchShape, *, num_streams: int, full_causal: bool = False, impl: str, compute: str, gemm: str
) -> ModelConfig:
    """The model; full causal attention sees everything older."""
    window = shape.max_length if full_causal else shape.window
    stream = {
        "max_length": shape.max_length,
        "num_layers": shape.num_layers,
        "local_window": window,
        "global_window": shape.window,
        "pyramid": [[shape.full_layers, shape.keep]],
    }
    return ModelConfig.model_validate(
        {
            "kind": "ultra_hstu",
            "action_encoding": "heterogeneous",
            "dim": shape.dim,
            "num_heads": shape.num_heads,
            "qk_dim": shape.head_dim,
            "v_dim": shape.head_dim,
            "dropout": 0.0,
            "norm_epsilon": 1e-6,
            "global_axis": "queries",
            "streams": dict.fromkeys(_STREAMS[:num_streams], stream),
            "contextual": [["user"], ["degree"]],
            "heads": {"tasks": ["is_click", "is_like"], "hidden_dim": 64, "watch_ratio_weight": 0.0},
            "impl": impl,
            "compute": compute,
            "gemm": gemm,
        }
    )


def bench_batch(
    spec: FeatureSpec, lengths: Sequence[Sequence[int]], num_candidates: int, *, device: torch.device, seed: int = 0
) -> Batch:
    """Random codes in histories of the given lengths, per stream of the spec."""
    generator = torch.Generator(device=device).manual_seed(seed)
    num_requests = len(lengths[0])

    def codes(count: int, fields: tuple[CategoricalField, ...]) -> Tensor:
        columns = [torch.randint(1, f.size, (count,), generator=generator, device=device) for f in fields]
        return torch.stack(columns, dim=1).int()

    def bits(count: int) -> Tensor:
        return torch.randint(0, 1 << len(spec.actions), (count,), generator=generator, device=device)

    def stream(length_B: Sequence[int]) -> UIHStream:
        total = sum(length_B)
        return UIHStream(
            offsets_B1=lengths_to_offsets(torch.tensor(length_B, dtype=torch.int64, device=device)),
            lengths=tuple(length_B),
            items_TF=codes(total, spec.item_fields),
            timestamp_ms_T=_REQUEST_MS - torch.randint(1, 1 << 31, (total,), generator=generator, device=device),
            action_mask_T=bits(total),
            intensity_T=torch.randint(0, spec.intensity_size, (total,), generator=generator, device=device).int(),
            contexts_TX=codes(total, spec.token_contexts),
        )

    total = num_requests * num_candidates
    request_B = torch.arange(num_requests, device=device)
    batch = Batch(
        request_id_B=request_B,
        user_id_B=request_B,
        request_ms_B=torch.full((num_requests,), _REQUEST_MS, device=device),
        users_BF=codes(num_requests, spec.user_fields),
        streams=tuple(stream(length_B) for length_B in lengths),
        candidates=Candidates(
            offsets_B1=torch.arange(num_requests + 1, device=device) * num_candidates,
            items_CF=codes(total, spec.item_fields),
            contexts_CX=codes(total, spec.candidate_contexts),
            action_mask_C=bits(total),
            watch_ratio_C=torch.full((total,), torch.nan, device=device),
        ),
    )
    return batch.counted()
