import json
import sys

import pytest
import torch

from model.bench import resume as bench_resume


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_two_gpus_only_tiny_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_resume", "--out", str(tmp_path / "resume.json")])
    with pytest.raises(SystemExit, match="0 GPUs are here, two are needed; --tiny needs none"):
        bench_resume.main()


def test_continuations_are_compared_with_the_run_that_went_on(tmp_path, monkeypatch):
    """The runs themselves are tests/model/ranks/test_ranks.py's."""
    found = {"straight": [0.5, 0.4], "resumed": [0.5, 0.41]}
    monkeypatch.setattr(bench_resume, "_start", lambda work, phase, ranks, *, tiny: found[phase])
    out = tmp_path / "resume.json"
    monkeypatch.setattr(sys, "argv", ["bench_resume", "--tiny", "--out", str(out)])
    bench_resume.main()
    document = json.loads(out.read_text())
    assert set(document["losses"]) == {"two ranks, uninterrupted", *(f"resumed on {n}" for n in (1, 2, 3))}
    assert document["first_step"] == 7
    assert document["largest_relative_difference"] == pytest.approx(0.025)


def test_one_rank_leaves_its_losses_and_a_checkpoint(tmp_path, monkeypatch):
    bench_resume.write_world(tmp_path / "streams", bench_resume.long_world(bench_resume.TINY))
    runs = {}
    for phase in ("straight", "resumed"):
        out = tmp_path / f"{phase}.json"
        arguments = ["--tiny", "--phase", phase, "--work", str(tmp_path), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["bench_resume", *arguments])
        bench_resume.main()
        runs[phase] = json.loads(out.read_text())
    assert len(runs["straight"]) == 5
    assert runs["resumed"] == runs["straight"]
