"""Small batches and configurations for the ranker's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from features.spec import CategoricalField, FeatureSpec
from kernels import lengths_to_offsets
from model.batch import Batch, Candidates, UIHStream
from model.config import ModelConfig


def _fields(**sizes: int) -> tuple[CategoricalField, ...]:
    return tuple(CategoricalField(name=name, size=size) for name, size in sizes.items())


@pytest.fixture
def spec() -> FeatureSpec:
    """Three actions, two streams, two columns of everything."""
    return FeatureSpec(
        actions=("click", "like", "hate"),
        streams=("consumption", "interaction"),
        item_fields=_fields(item=40, author=12),
        user_fields=_fields(user=20, level=5, city=6),
        token_contexts=_fields(surface=4, hour=25, gap=32),
        candidate_contexts=_fields(surface=4, hour=25),
        intensity_size=9,
    )


@pytest.fixture
def make_config() -> Callable[..., ModelConfig]:
    """A small ModelConfig; keyword arguments replace top-level settings."""

    def make(**changes: object) -> ModelConfig:
        stream = {"num_layers": 2, "local_window": 3, "global_window": 2}
        settings = {
            "kind": "ultra_hstu",
            "action_encoding": "heterogeneous",
            "dim": 16,
            "num_heads": 2,
            "qk_dim": 8,
            "v_dim": 8,
            "dropout": 0.0,
            "norm_epsilon": 1e-6,
            "global_axis": "queries",
            "impl": "reference",
            "compute": "fp32",
            "gemm": "bf16",
            "streams": {
                "consumption": {**stream, "max_length": 24, "pyramid": [[1, 4]]},
                "interaction": {**stream, "max_length": 8, "pyramid": []},
            },
            "contextual": [["user"], ["level", "city"]],
            "heads": {"tasks": ["click", "like"], "hidden_dim": 8, "watch_ratio_weight": 0.0},
        }
        return ModelConfig.model_validate(settings | changes)

    return make


@pytest.fixture
def make_batch(spec: FeatureSpec) -> Callable[..., Batch]:
    """A random batch with the given history lengths per stream and candidates per request."""

    def make(consumption: list[int], interaction: list[int], candidates: list[int], *, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        request_ms = 1_650_000_000_000 + torch.arange(len(candidates)) * 1000
        scored = lengths_to_offsets(torch.tensor(candidates, dtype=torch.int64))
        total = sum(candidates)
        return Batch(
            request_id_B=torch.arange(len(candidates)),
            user_id_B=torch.arange(len(candidates)),
            request_ms_B=request_ms,
            users_BF=_codes(len(candidates), spec.user_fields, generator),
            streams=tuple(_stream(lengths, request_ms, spec, generator) for lengths in (consumption, interaction)),
            candidates=Candidates(
                offsets_B1=scored,
                items_CF=_codes(total, spec.item_fields, generator),
                contexts_CX=_codes(total, spec.candidate_contexts, generator),
                action_mask_C=torch.randint(0, 8, (total,), generator=generator),
                watch_ratio_C=torch.rand(total, generator=generator),
            ),
        )

    return make


def _codes(total: int, fields: tuple[CategoricalField, ...], generator: torch.Generator) -> torch.Tensor:
    columns = [torch.randint(0, field.size, (total,), generator=generator, dtype=torch.int32) for field in fields]
    return torch.stack(columns, dim=1)


def _stream(lengths: list[int], request_ms: torch.Tensor, spec: FeatureSpec, generator: torch.Generator) -> UIHStream:
    counts = torch.tensor(lengths, dtype=torch.int64)
    total = sum(lengths)
    ages = torch.randint(1, 10**8, (total,), generator=generator)
    return UIHStream(
        offsets_B1=lengths_to_offsets(counts),
        lengths=tuple(lengths),
        items_TF=_codes(total, spec.item_fields, generator),
        timestamp_ms_T=request_ms.repeat_interleave(counts) - ages,
        action_mask_T=torch.randint(0, 8, (total,), generator=generator),
        intensity_T=torch.randint(0, spec.intensity_size, (total,), generator=generator, dtype=torch.int32),
        contexts_TX=_codes(total, spec.token_contexts, generator),
    )
