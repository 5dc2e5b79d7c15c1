"""Times every operator on this GPU, beside a matrix product, a copy and cuDNN's attention in the same process.

python -m kernels.bench [--out bench/kernels.json] [--length 16384 ...]

Each case is first compared with a reference; what is wrong is not timed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path

import torch

from kernels.bench.timing import Shape, Timing

logger = logging.getLogger("kernels.bench")


def measure(shape: Shape) -> list[Timing]:
    """All rows, each logged as it comes; the rulers stand before and after."""
    from kernels.bench import attention, layer, rulers

    rows: list[Timing] = []
    now = rulers.measure_rulers()
    groups = (
        lambda: rulers.time_rulers(now, shape),
        lambda: attention.time_cases(shape, now),
        lambda: attention.time_cached(shape, now),
        lambda: attention.time_plan(shape, now),
        lambda: layer.time_norms(shape, now),
        lambda: layer.time_products(shape, now),
        lambda: layer.time_layers(shape, now),
        lambda: rulers.time_rulers(rulers.measure_rulers(), shape),
    )
    for group in groups:
        for row in group():
            logger.info(_line(row))
            rows.append(row)
        torch.cuda.empty_cache()
    return rows


def _line(row: Timing) -> str:
    share = "" if row.share is None else f"{row.share:.2f}"
    call = "" if row.call_ms is None else f"{row.call_ms:.3f}"
    error = "" if row.error_eps is None else f"{row.error_eps:.2f}"
    rate = f"{row.rate:.1f} {row.unit}"
    return f"{row.case:56s} {row.part:21s} {row.ms:9.3f} {rate:>17s} {share:>5s} {call:>8s} {error:>6s}  {row.note}"


def _write(path: Path, shape: Shape, rows: list[Timing]) -> None:
    import triton

    report = {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "shape": asdict(shape),
        "timings": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    os.replace(partial, path)


def main() -> None:
    """Prints the table and writes it as JSON."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/kernels.json"))
    for field in fields(Shape):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    if not torch.cuda.is_available():
        logger.info("kernels.bench needs a GPU, this machine has none; nothing was timed")
        return
    head = ("case", "part", "ms", "rate", "share", "call ms", "eps")
    logger.info("%-56s %-21s %9s %17s %5s %8s %6s", *head)
    shape = Shape(**arguments)
    _write(out, shape, measure(shape))


if __name__ == "__main__":
    main()
