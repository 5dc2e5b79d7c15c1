"""Whole training steps in tokens/s and their memory, beside full causal attention and a stack that saves everything.

    python -m model.bench.step                                             one GPU: variants, memory, waiting for data
    torchrun --standalone --nproc-per-node 2 -m model.bench.step --ranks    samples/s with SL and LBSL on these ranks
    python -m model.bench.step --ranks                                      the same on one, to compare with
    python -m model.bench.step --tiny                                       on a CPU, to see that it runs

A step is embedding, forward, backward, gradient sum, clipping and both optimizers, on batches that are on the device.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, silu

from features.errors import DataError
from features.files import write_json
from model.batch import Batch
from model.bench.step_batches import TINY, BenchShape, bench_batch, bench_config, bench_spec
from model.bench.step_clock import wait_for
from model.bench.step_data import data_wait
from model.bench.step_ranks import KINDS, REQUESTS_PER_RANK, SETTINGS, default_config, ranks_figures, train_steps
from model.config import ModelConfig
from model.ranker import Ranker
from model.sequence import TokenSequence
from model.stage import quiet_unless_first, run_stage
from model.stu import STULayer
from model.training.distributed import World, joined_world
from model.training.optim import Optimizer
from model.transducer import HSTUTransducer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepFigures:
    """One variant.

    Attributes:
        tokens: history tokens and candidates of a step.
        step_ms: median.
        peak_gib: most memory of a step, model and batch included.
        held_bytes_per_token: what the stacks keep between forward and backward, per layer and token of the layer.
        held_tensors: the same in dim-wide bf16 tensors.
    """

    variant: str
    tokens: int
    step_ms: float
    tokens_per_second: float
    peak_gib: float | None
    held_bytes_per_token: float
    held_tensors: float


def plain_layer(layer: STULayer, sequence: TokenSequence) -> TokenSequence:
    """The layer in PyTorch's own pieces around the attention kernel: autograd saves whatever a piece wants."""
    dtype, plan = sequence.values_TD.dtype, sequence.plan

    def rounded(weight: Tensor) -> Tensor:
        return weight.to(dtype)

    z_TD = sequence.values_TD
    norm, gate = layer.input_norm, layer.attention_norm
    x_TD = layer_norm(z_TD, norm.normalized_shape, rounded(norm.weight), rounded(norm.bias), norm.eps)
    projected = silu(linear(x_TD, rounded(layer.uvqk.weight), rounded(layer.uvqk.bias)))
    u_TE, v_TE, q_TE, k_TE = projected.split(layer.sizes, dim=1)
    attention_TE = layer.attend(q_TE, k_TE, v_TE, plan=plan)
    normed_TE = layer_norm(attention_TE, gate.normalized_shape, rounded(gate.weight), rounded(gate.bias), gate.eps)
    return sequence.with_values(z_TD + linear(normed_TE * u_TE, rounded(layer.output.weight)))


def median_seconds(run: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """Of a run, in the median of five rows of `repeats`, one right behind the other; three warm up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(5):
        wait_for(device)
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        wait_for(device)
        times.append((time.perf_counter() - started) / repeats)
    return float(np.median(times))


def held_between_passes(ranker: Ranker, batch: Batch) -> tuple[int, int]:
    """Bytes that the stacks save for the backward pass, and the sum of their layers' tokens."""
    tokens = ranker.embeddings(batch)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in ranker.parameters()}
    held: dict[int, int] = {}
    num_layer_tokens = 0

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Layouts and lists of work are a few bytes a request; what counts is floating point.
        if tensor.is_floating_point() and storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    for name, transducer in ranker.transducers.transducers.items():
        assert isinstance(transducer, HSTUTransducer)
        sequence = transducer.preprocess(tokens.contextual, tokens.histories[name], tokens.candidates)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = transducer.stack(sequence)
        full = sequence.values_TD.shape[0]
        for number in range(1, len(transducer.stack.layers) + 1):
            num_layer_tokens += full
            if number in transducer.stack.keep_after_layer:
                full = out.values_TD.shape[0]
        del out
    return sum(held.values()), num_layer_tokens


def measure(
    variant: str, config: ModelConfig, shape: BenchShape, *, device: torch.device, plain: bool, repeats: int
) -> StepFigures:
    """Times a variant and weighs its memory."""
    torch.manual_seed(0)
    spec = bench_spec(shape)
    ranker = Ranker(config, spec, device=device).train()
    if plain:
        for layer in ranker.modules():
            if isinstance(layer, STULayer):
                layer.forward = partial(plain_layer, layer)  # type: ignore[method-assign]
    optimizer = Optimizer(ranker, SETTINGS)
    first = shape.max_length * 3 // 4 if len(config.streams) == 2 else shape.max_length
    lengths = [[first] * shape.num_requests, [shape.max_length - first] * shape.num_requests]
    batch = bench_batch(spec, lengths, shape.num_candidates, device=device)
    held, layer_tokens = held_between_passes(ranker, batch)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    steps = train_steps(ranker, optimizer, repeat(batch), World())
    seconds = median_seconds(lambda: next(steps), device, repeats=repeats)
    peak = torch.cuda.max_memory_allocated(device) / (1 << 30) if device.type == "cuda" else None
    return StepFigures(
        variant=variant,
        tokens=batch.num_tokens,
        step_ms=1000 * seconds,
        tokens_per_second=batch.num_tokens / seconds,
        peak_gib=peak,
        held_bytes_per_token=held / layer_tokens,
        held_tensors=held / layer_tokens / (2 * shape.dim),
    )


def variants(shape: BenchShape, device: torch.device, *, repeats: int) -> list[StepFigures]:
    """All variants that the device can compute."""
    on_gpu = device.type == "cuda"
    impl, compute = ("triton", "bf16") if on_gpu else ("reference", "fp32")
    cases = [
        (f"{streams} stream(s), {mask}, {gemm}{', everything saved' if plain else ''}", streams, mask, gemm, plain)
        for streams, mask, gemm, plain in (
            (1, "semi-local", "bf16", False),
            (1, "semi-local", "fp8", False),
            (1, "semi-local", "bf16", True),
            (1, "full causal", "bf16", False),
            (2, "semi-local", "bf16", False),
            (2, "semi-local", "fp8", False),
            (2, "full causal", "bf16", False),
        )
        if on_gpu or gemm == "bf16"
    ]
    figures = []
    for name, streams, mask, gemm, plain in cases:
        config = bench_config(
            shape, num_streams=streams, full_causal=mask == "full causal", impl=impl, compute=compute, gemm=gemm
        )
        figures.append(measure(name, config, shape, device=device, plain=plain, repeats=repeats))
        logger.info("%s: %s", name, figures[-1])
    return figures


def run(arguments: argparse.Namespace) -> None:
    """Measures and writes the figures."""
    shape = TINY if arguments.tiny else BenchShape()
    if not arguments.tiny and not torch.cuda.is_available():
        raise DataError("bench_step: cuda is not available here; --tiny runs on the CPU")
    with joined_world(torch.device("cpu" if arguments.tiny else "cuda")) as world:
        device = world.own_device(torch.device("cpu" if arguments.tiny else "cuda"))
        quiet_unless_first(world.is_first)
        content: dict = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "ranks": world.size,
            "shape": dataclasses.asdict(shape),
        }
        if arguments.ranks:
            steps = 3 if arguments.tiny else arguments.steps
            content["requests_per_rank"] = REQUESTS_PER_RANK
            kinds = {kind: ranks_figures(kind, shape, world, device=device, steps=steps) for kind in KINDS}
            content["samples_per_second"] = {kind: figures.samples_per_second for kind, figures in kinds.items()}
            content["kinds"] = {kind: dataclasses.asdict(figures) for kind, figures in kinds.items()}
            logger.info("%d rank(s): %s samples/s", world.size, content["samples_per_second"])
        else:
            repeats = 2 if arguments.tiny else 8
            if not arguments.only_data:
                content["variants"] = [dataclasses.asdict(row) for row in variants(shape, device, repeats=repeats)]
            content["data"] = _data(shape, device, steps=5 if arguments.tiny else arguments.steps)
        if world.is_first:
            write_json(arguments.out, content)


def _data(shape: BenchShape, device: torch.device, *, steps: int) -> dict:
    warm_up = {"warm_up": 5} if shape is TINY else {}
    figures = data_wait(default_config(shape, device), shape, device, steps=steps, **warm_up)
    logger.info("with the reader: %s", figures)
    return dataclasses.asdict(figures)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m model.bench.step", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench/step.json"))
    parser.add_argument("--ranks", action="store_true", help="samples/s of the ranks that torchrun started, or of one")
    parser.add_argument("--only-data", action="store_true", help="only how long a step waits for the reader")
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    run_stage(lambda: run(arguments))


if __name__ == "__main__":
    main()
