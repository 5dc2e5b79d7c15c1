"""How fast batches come out of a streams dataset, on one core.

python -m model.bench.reader          data/streams in, a table and bench/reader.json out
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from features.dataset import StreamsDataset, open_dataset
from features.files import write_json
from model.reader import Reader
from model.training.sampler import TRAIN

_LOG = logging.getLogger(__name__)
_BATCH_SIZE = 256
_NUM_BATCHES = 20
_LENGTHS = (256, 2_048, 16_384, 1 << 40)  # the last one cuts nothing


def tokens_per_second(dataset: StreamsDataset, max_length: int) -> dict[str, float]:
    """Reads shuffled batches, all columns of all streams into fresh tensors; medians over the batches."""
    lengths = (max_length,) * len(dataset.manifest.spec.streams)
    reader = Reader(dataset, split=TRAIN, batch_size=_BATCH_SIZE, max_lengths=lengths, shuffle_seed=1)
    rates, tokens = [], []
    batches = iter(reader)
    next(batches)  # maps the files
    for _ in range(min(_NUM_BATCHES, reader.num_batches - 1)):
        start = time.perf_counter()
        batch = next(batches)
        seconds = time.perf_counter() - start
        tokens.append(sum(int(stream.offsets_B1[-1]) for stream in batch.streams))
        rates.append(tokens[-1] / seconds)
    return {
        "tokens_per_second": round(statistics.median(rates)),
        "best_tokens_per_second": round(max(rates)),
        "tokens_per_batch": round(statistics.median(tokens)),
    }


def measure(dataset: StreamsDataset) -> dict[str, Any]:
    """The rate for each length, and what the reader knows of the dataset."""
    torch.set_num_threads(1)
    found = {("none" if length > 1 << 30 else f"{length}"): tokens_per_second(dataset, length) for length in _LENGTHS}
    return {"batch_size": _BATCH_SIZE, "streams": list(dataset.manifest.spec.streams), "max_length": found}


def main() -> None:
    """Command line of the benchmark."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    parser = argparse.ArgumentParser(prog="python -m model.bench.reader", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=Path, default=Path("data/streams"))
    parser.add_argument("--out", type=Path, default=Path("bench/reader.json"))
    args = parser.parse_args()
    found = measure(open_dataset(args.streams, verify=False))
    write_json(args.out, found)
    for length, figures in found["max_length"].items():
        rate, size = figures["tokens_per_second"] / 1e6, figures["tokens_per_batch"]
        _LOG.info("at most %6s events: %7.1f million tokens/s, %9d tokens a batch", length, rate, size)


if __name__ == "__main__":
    main()
