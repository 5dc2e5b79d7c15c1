import json
import sys
import warnings

import pytest
import torch

from model.bench.step import held_between_passes, main, plain_layer
from model.bench.step_batches import TINY, bench_batch, bench_config, bench_spec
from model.bench.step_clock import host_waits
from model.ranker import Ranker
from model.stu import STULayer

PARTS = {
    *("begin, rows of the next", "lookup", "layers forward", "layers backward"),
    "tables backward, dense update",
}


def tiny_ranker():
    torch.manual_seed(0)
    config = bench_config(TINY, num_streams=2, impl="reference", compute="fp32", gemm="bf16")
    spec = bench_spec(TINY)
    batch = bench_batch(spec, [[40, 64, 3], [8, 0, 5]], 2, device=torch.device("cpu"))
    return Ranker(config, spec).train(), batch


def test_layer_that_saves_everything_computes_the_same(monkeypatch):
    ranker, batch = tiny_ranker()
    expected = ranker(batch).logits_CK
    monkeypatch.setattr(STULayer, "forward", plain_layer)
    torch.testing.assert_close(ranker(batch).logits_CK, expected, rtol=1e-5, atol=1e-6)


def test_held_bytes_count_each_layers_tokens():
    ranker, batch = tiny_ranker()
    held, layer_tokens = held_between_passes(ranker, batch)
    # two contextual tokens and two candidates a request; one layer at full length, two at the newest 8
    full = 107 + 13 + 2 * 3 * 4
    truncated = (8 + 8 + 3) + (8 + 0 + 5) + 2 * 3 * 4
    assert layer_tokens == full + 2 * truncated
    assert held > layer_tokens * TINY.dim * 4


@pytest.mark.parametrize("arguments", [[], ["--ranks"]])
def test_command_runs_small(tmp_path, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["bench_step", "--tiny", "--out", str(tmp_path / "step.json"), *arguments])
    main()
    document = json.loads((tmp_path / "step.json").read_text())
    if arguments:
        assert set(document["samples_per_second"]) == {"sl", "lbsl", "lbsl_fill"}
        figures = document["kinds"]["lbsl"]
        assert [(row["step"], row["rank"], row["load_share"]) for row in figures["log"]] == [
            (s, 0, 1) for s in range(3)
        ]
        assert set(figures["part_ms"]) == PARTS
    else:
        assert document["variants"][0]["variant"] == "1 stream(s), semi-local, bf16"
        figures = document["data"]
        assert 0 <= figures["data_wait_share"] <= 1
        assert figures["wait_ms"] <= figures["max_wait_ms"] < figures["step_ms"] * figures["steps"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_only_tiny_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_step", "--out", str(tmp_path / "step.json")])
    with pytest.raises(SystemExit, match="cuda is not available here; --tiny runs on the CPU"):
        main()


def test_only_lines_that_wait_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "set_sync_debug_mode", lambda _: warnings.warn("it may miss synchronizing operations", stacklevel=2)
    )

    def run():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    [(line, times)] = host_waits(run).items()
    assert line.startswith("model/test_bench_step.py:")
    assert times == 2
