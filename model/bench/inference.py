"""Times what cached histories and narrow embedding rows save, on a GPU, with random weights and requests.

python -m model.bench.inference               a table, and bench/inference_gpu.json
python -m model.bench.inference --tiny        the same on a CPU in seconds, to see that it runs

One request of L events and C candidates is scored with its history cached, each candidate alone, and in micro-batches
that encode the history each time. Then the rows that it looks up are brought to the device in every precision.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from features.errors import DataError
from features.spec import CategoricalField, FeatureSpec
from model.batch import Batch, Candidates, UIHStream
from model.config import ModelConfig
from model.embeddings import table_fields
from model.serving.export_tables import segment_rows
from model.serving.parity_table import versions
from model.serving.precision import Compute
from model.serving.quantize import RowFormat, TableFormat
from model.serving.scorer_model import ServedModel
from model.serving.scorer_transfers import TransferFigures, transfer_figures
from model.stage import run_stage
from model.tokens import EmbeddedTokens

logger = logging.getLogger(__name__)
_NOW_MS = 1_700_000_000_000
_INT4 = TableFormat(rows=RowFormat(precision="int4"), small_rows=1000)


@dataclass(frozen=True)
class Setting:
    """What is timed: a model, a request, and how often."""

    device: str
    impl: str
    compute: Compute
    length: int
    candidates: int
    dim: int
    num_heads: int
    num_layers: int
    full_layers: int
    keep: int
    window: int
    num_items: int
    micro_batch: int
    requests: int

    def model(self) -> ModelConfig:
        """One stream, truncated after `full_layers`."""
        head = self.dim // self.num_heads
        stream = {
            "max_length": self.length,
            "num_layers": self.num_layers,
            "local_window": self.window,
            "global_window": self.window,
            "pyramid": [[self.full_layers, self.keep]],
        }
        return ModelConfig.model_validate(
            {
                "kind": "ultra_hstu",
                "action_encoding": "heterogeneous",
                "dim": self.dim,
                "num_heads": self.num_heads,
                "qk_dim": head,
                "v_dim": head,
                "dropout": 0.0,
                "norm_epsilon": 1e-6,
                "global_axis": "queries",
                "streams": {"consumption": stream},
                "contextual": [["user"]],
                "heads": {"tasks": ["is_click", "is_like"], "hidden_dim": self.dim, "watch_ratio_weight": 0.0},
                "impl": self.impl,
                "compute": "fp32",
                "gemm": "bf16",
            }
        )

    def spec(self) -> FeatureSpec:
        """Items, an author each, a surface and an hour."""

        def fields(**sizes: int) -> tuple[CategoricalField, ...]:
            return tuple(CategoricalField(name=name, size=size) for name, size in sizes.items())

        return FeatureSpec(
            actions=("is_click", "is_like"),
            streams=("consumption",),
            item_fields=fields(item=self.num_items, author=self.num_items // 4),
            user_fields=fields(user=1000),
            token_contexts=fields(surface=16, hour=25),
            candidate_contexts=fields(surface=16, hour=25),
            intensity_size=40,
        )


FULL = Setting("cuda", "triton", "bf16", 16384, 512, 512, 4, 8, 3, 512, 256, 400_000, 64, 100)
TINY = Setting("cpu", "reference", "fp32", 96, 24, 32, 2, 4, 2, 16, 16, 8000, 8, 4)


def random_batch(spec: FeatureSpec, length: int, num_candidates: int, seed: int) -> Batch:
    """A request of random codes, on the host."""
    draw = np.random.default_rng(seed)

    def codes(fields: tuple[CategoricalField, ...], count: int) -> Tensor:
        columns = [draw.integers(1, field.size, count) for field in fields]
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.int32))

    ages_ms = np.cumsum(draw.integers(1, 600_000, length))
    stream = UIHStream(
        offsets_B1=torch.tensor([0, length]),
        lengths=(length,),
        items_TF=codes(spec.item_fields, length),
        timestamp_ms_T=torch.from_numpy(_NOW_MS - ages_ms),
        action_mask_T=torch.from_numpy(draw.integers(0, 4, length)),
        intensity_T=torch.from_numpy(draw.integers(0, spec.intensity_size, length).astype(np.int32)),
        contexts_TX=codes(spec.token_contexts, length),
    )
    candidates = Candidates(
        offsets_B1=torch.tensor([0, num_candidates]),
        items_CF=codes(spec.item_fields, num_candidates),
        contexts_CX=codes(spec.candidate_contexts, num_candidates),
        action_mask_C=torch.zeros(num_candidates, dtype=torch.int64),
        watch_ratio_C=torch.full((num_candidates,), torch.nan),
    )
    ids = torch.tensor([seed])
    return Batch(ids, ids, torch.tensor([_NOW_MS]), codes(spec.user_fields, 1), (stream,), candidates)


def build(setting: Setting) -> tuple[ServedModel, dict[str, Tensor]]:
    """A model of random weights with int4 rows in host memory, and its tables in fp32."""
    config, spec = setting.model(), setting.spec()
    torch.manual_seed(0)
    model = ServedModel(
        config, spec, _INT4, device=torch.device(setting.device), placement="host", compute=setting.compute
    )
    torch.nn.init.normal_(model.heads.weight, std=0.1)
    tables = {field.name: torch.randn(field.size, config.dim) * 0.05 for field in table_fields(config, spec)}
    model.tables.load_rows(segment_rows(tables, config, spec, table_format=_INT4))
    return model, tables


def chosen_candidates(batch: Batch, begin: int, end: int) -> Batch:
    """The request with some of its candidates."""
    whole = batch.candidates
    part = Candidates(
        offsets_B1=torch.tensor([0, end - begin]),
        items_CF=whole.items_CF[begin:end],
        contexts_CX=whole.contexts_CX[begin:end],
        action_mask_C=whole.action_mask_C[begin:end],
        watch_ratio_C=whole.watch_ratio_C[begin:end],
    )
    return replace(batch, candidates=part)


class Ways:
    """The ways to score a request; each gives (C, K) probabilities on the host."""

    def __init__(self, model: ServedModel, setting: Setting) -> None:
        self._model, self._setting = model, setting

    def cached(self, batch: Batch, micro_batch: int | None = None) -> Tensor:
        """The history once, then candidates against its keys and values."""
        size = micro_batch or self._setting.candidates
        predictions = self._model(batch, micro_batch_size=size)
        return torch.sigmoid(predictions.logits_CK).cpu()

    @torch.inference_mode()
    def uncached(self, batch: Batch) -> Tensor:
        """History and candidates through all layers together, as in training; in bf16 where the cached way has FP8."""
        model = self._model
        tokens: EmbeddedTokens = model.embeddings(batch.to(model.device))
        with torch.autocast(model.device.type, torch.bfloat16, enabled=self._setting.compute != "fp32"):
            vectors_CD = model.transducers(tokens)
        return torch.sigmoid(model.heads(vectors_CD.float()).logits_CK).cpu()

    def in_parts(self, batch: Batch, size: int) -> Tensor:
        """Micro-batches of candidates, the history encoded for each."""
        total = self._setting.candidates
        parts = [chosen_candidates(batch, begin, min(begin + size, total)) for begin in range(0, total, size)]
        return torch.cat([self.uncached(part) for part in parts])


@dataclass(frozen=True)
class Rate:
    """One way to score: milliseconds of a request and candidates a second."""

    way: str
    p50_ms: float
    p99_ms: float
    candidates_per_s: float
    requests: int
    largest_difference: float


def time_way(
    way: str, score: Callable[[Batch], Tensor], batches: list[Batch], *, repeats: int, expected: list[Tensor]
) -> Rate:
    """Times whole requests from host memory to host memory; what comes back is compared with `expected`."""
    difference = max(float((score(batch) - other).abs().max()) for batch, other in zip(batches, expected, strict=False))
    durations = []
    for number in range(repeats):
        batch = batches[number % len(batches)]
        started = time.perf_counter()
        score(batch)
        durations.append(1000 * (time.perf_counter() - started))
    p50, p99 = np.percentile(durations, [50, 99])
    total = batches[0].candidates.items_CF.shape[0] * repeats
    return Rate(way, float(p50), float(p99), 1000 * total / sum(durations), repeats, difference)


def time_ways(model: ServedModel, setting: Setting) -> list[Rate]:
    """All ways on the same requests."""
    ways = Ways(model, setting)
    batches = [random_batch(model.spec, setting.length, setting.candidates, seed) for seed in range(4)]
    expected = [ways.uncached(batch) for batch in batches]
    few = max(setting.requests // 20, 1)
    size = setting.micro_batch
    plan: list[tuple[str, Callable[[Batch], Tensor], int]] = [
        ("cached, all candidates at once", ways.cached, setting.requests),
        (f"cached, micro-batches of {size}", lambda batch: ways.cached(batch, size), setting.requests),
        ("uncached, all candidates at once", ways.uncached, setting.requests),
        (f"uncached, micro-batches of {size}", lambda batch: ways.in_parts(batch, size), few * 2),
        ("uncached, each candidate alone", lambda batch: ways.in_parts(batch, 1), 1),
    ]
    rates = []
    for way, score, repeats in plan:
        chosen = batches if repeats > 1 else batches[:1]
        rates.append(time_way(way, score, chosen, repeats=repeats, expected=expected))
        logger.info("%-36s p50 %9.2f ms  p99 %9.2f ms  %10.0f candidates/s  difference %.1e", way, rates[-1].p50_ms,
                    rates[-1].p99_ms, rates[-1].candidates_per_s, rates[-1].largest_difference)  # fmt: skip
    return rates


@torch.inference_mode()
def cache_bytes(model: ServedModel, setting: Setting) -> int:
    """Bytes of the keys and values of one request."""
    batch = random_batch(model.spec, setting.length, setting.candidates, 0)
    return model.cached.encode(model.embeddings(batch.to(model.device))).num_bytes


def run(setting: Setting, out: Path) -> None:
    """Times everything and writes the figures.

    Raises:
        DataError: there is no GPU.
    """
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise DataError("model.bench.inference needs a GPU; --tiny runs on a CPU")
    model, tables = build(setting)
    rates = time_ways(model, setting)
    batch = random_batch(model.spec, setting.length, setting.candidates, 0)
    transfers: list[TransferFigures] = transfer_figures(model, tables, batch)
    for figures in transfers:
        logger.info("%s", figures.line())
    cached, alone, parts = rates[0], rates[-1], rates[-2]
    content = {
        "setting": asdict(setting),
        "device": torch.cuda.get_device_name() if setting.device == "cuda" else "CPU",
        "versions": versions(),
        "rates": [asdict(rate) for rate in rates],
        "cached_over_each_alone": cached.candidates_per_s / alone.candidates_per_s,
        "cached_over_uncached_micro_batches": cached.candidates_per_s / parts.candidates_per_s,
        "cache_bytes_per_request": cache_bytes(model, setting),
        "transfers": [asdict(figures) for figures in transfers],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")
    logger.info("%s", out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m model.bench.inference", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench/inference_gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="on a CPU, in seconds")
    parser.add_argument("--requests", type=int, default=None, help="timed requests of the cached ways")
    parser.add_argument("--compute", choices=get_args(Compute), default=None, help="bf16 on a GPU unless given")
    args = parser.parse_args()
    setting = TINY if args.tiny else FULL
    setting = replace(setting, requests=args.requests or setting.requests, compute=args.compute or setting.compute)
    run_stage(lambda: run(setting, args.out))


if __name__ == "__main__":
    main()
