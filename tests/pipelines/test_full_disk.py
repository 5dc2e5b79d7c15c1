"""Stages on a disk that is too small: one line, the outputs before stay, nothing partial is left."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.ingest import ingest
from pipelines.sources.synthetic import SyntheticSettings, write_kuairand_logs
from pipelines.streams import build_streams
from pipelines.vocab import build_vocabularies

ROOT = Path(__file__).parents[2]
MAX_FILE_BYTES = 4_096  # stands for a full disk; the kernel refuses to write more


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "raw"
    write_kuairand_logs(folder, SyntheticSettings(num_events=2_000, num_users=40, num_items=400))
    return folder


def run_cramped(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a stage whose files may not grow beyond MAX_FILE_BYTES.

    Python's cache of modules is such a file too: cut off, it would break every import after this one.
    """
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES)),
    )


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_a_full_disk_is_told_and_leaves_what_was_there(
    raw: Path, tmp_path: Path, write_params: Callable[..., Path]
) -> None:
    params = write_params(raw, pipelines={"store": None, "num_shards": 2})
    out = tmp_path / "data"
    events, vocab, streams = out / "events", out / "vocab", out / "streams"
    ingest(params, events, out / "quarantine")
    build_vocabularies(params, events, vocab)
    build_streams(params, events, vocab, streams)
    before = outputs(out)
    stages = (
        ("pipelines.ingest", "--events", events, "--quarantine", out / "quarantine"),
        ("pipelines.streams", "--events", events, "--vocab", vocab, "--out", streams),
    )
    for module, *arguments in stages:
        done = run_cramped(module, "--params", params, *arguments)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("error: File too large: nothing was published")
        assert "Traceback" not in done.stderr
        assert outputs(out) == before
