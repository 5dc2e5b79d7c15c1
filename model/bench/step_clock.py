"""Where the time of a training step goes, and what makes the host wait for a GPU in it."""

from __future__ import annotations

import cProfile
import pstats
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from model.ranker import Ranker

Moment = float | torch.cuda.Event
_NAME_LENGTH, _NUM_KERNELS = 100, 40


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class StepClock:
    """Splits steps into named parts. On a GPU the parts are those of its own work, and nothing waits for them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps: list[list[tuple[str, Moment]]] = []

    def begin(self) -> None:
        """A step begins."""
        self._steps.append([])
        self.mark("")

    def mark(self, part: str) -> None:
        """What came since the last mark of this step was `part`."""
        moment: Moment = time.perf_counter()
        if self._device.type == "cuda":
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._steps[-1].append((part, moment))

    def step_ms(self) -> list[float]:
        """Of every step, first to last mark; waits for the device."""
        wait_for(self._device)
        return [_milliseconds(marks[0][1], marks[-1][1]) for marks in self._steps]

    def part_ms(self) -> dict[str, float]:
        """Mean of each part over the steps; waits for the device."""
        wait_for(self._device)
        sums: dict[str, float] = defaultdict(float)
        for marks in self._steps:
            for (_, begin), (part, end) in pairwise(marks):
                sums[part] += _milliseconds(begin, end)
        return {part: total / len(self._steps) for part, total in sums.items()}


def _milliseconds(begin: Moment, end: Moment) -> float:
    if isinstance(begin, float):
        assert isinstance(end, float)
        return 1000 * (end - begin)
    assert isinstance(end, torch.cuda.Event)
    return begin.elapsed_time(end)


@contextmanager
def marked_lookup(ranker: Ranker, clock: StepClock) -> Iterator[None]:
    """Marks a model's steps: `lookup` of the forward pass, `layers backward` of the backward pass.

    What the caller marks after forward and after backward is then the layers' forward and the tables' update.
    """

    def after(_module: object, _inputs: object, values_ND: Tensor) -> None:
        clock.mark("lookup")
        values_ND.register_hook(lambda _gradient: clock.mark("layers backward"))

    handle = ranker.embeddings.tables.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class KernelTimes:
    """What a GPU did in some steps, in ms a step.

    Attributes:
        wall_ms: of a step, profiler included.
        busy_ms: of all kernels.
        kernels: the longest, name, times a step and ms a step.
    """

    wall_ms: float
    busy_ms: float
    kernels: list[tuple[str, float, float]]


def kernel_times(run: Callable[[], object], device: torch.device, *, steps: int) -> KernelTimes:
    """Profiles `steps` calls on a GPU."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        started = time.perf_counter()
        for _ in range(steps):
            run()
        wait_for(device)
        seconds = time.perf_counter() - started
    found = [
        (event.key[:_NAME_LENGTH], event.count / steps, event.self_device_time_total / 1000 / steps)
        for event in profiler.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    found.sort(key=lambda kernel: -kernel[2])
    return KernelTimes(1000 * seconds / steps, sum(kernel[2] for kernel in found), found[:_NUM_KERNELS])


def host_times(run: Callable[[], object], device: torch.device, *, steps: int) -> list[tuple[str, float, float]]:
    """The functions in which the host spends the most itself: name, calls a step and ms a step, profiler included.

    The profiler sees this thread alone: `run` has its backward pass here too.
    """
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(steps):
        run()
    profiler.disable()
    wait_for(device)
    rows = [
        (f"{'/'.join(Path(file).parts[-2:])}:{line} {name}", calls / steps, 1000 * own / steps)
        for (file, line, name), (_, calls, own, _, _) in pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
    ]
    return sorted(rows, key=lambda row: -row[2])[:_NUM_KERNELS]


def host_waits(run: Callable[[], object]) -> dict[str, int]:
    """How often each line makes the host wait for a CUDA device while `run` runs."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    # PyTorch also warns, once, that this way to ask may change.
    waits = [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
    return dict(Counter(f"{'/'.join(Path(wait.filename).parts[-2:])}:{wait.lineno}" for wait in waits))
