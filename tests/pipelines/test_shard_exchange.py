"""Streams over a URL: the same bytes as over the disk, and nothing left at the URL."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

import pipelines.shard_exchange
from features.errors import DataError
from features.storage import Remote
from pipelines.ingest import ingest
from pipelines.sources.synthetic import SyntheticSettings, write_kuairand_logs
from pipelines.streams import build_streams
from pipelines.vocab import build_vocabularies


@pytest.fixture
def run(tmp_path: Path, write_params: Callable[..., Path]) -> Callable[..., dict[str, bytes]]:
    """Runs the streams stage over small logs; the bytes of every file of the dataset."""
    raw = tmp_path / "raw"
    write_kuairand_logs(raw, SyntheticSettings(num_events=2_000, num_users=40, num_items=400))
    events, vocab = tmp_path / "events", tmp_path / "vocab"
    params = write_params(raw)
    ingest(params, events, tmp_path / "quarantine")
    build_vocabularies(params, events, vocab)

    def build(**settings: object) -> dict[str, bytes]:
        out = tmp_path / "streams"
        build_streams(write_params(raw, pipelines=settings), events, vocab, out)
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    return build


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_bytes_are_those_of_a_run_over_the_disk(
    run: Callable[..., dict[str, bytes]], num_workers: int, tmp_path: Path
) -> None:
    # Readers of one file in memory:// share its position, so two workers need another store.
    url = f"memory://{uuid.uuid4().hex}/spill" if num_workers == 1 else f"file://{tmp_path}/spill"
    expected = run()
    assert run(spill=url, num_workers=num_workers, rows_per_unit=300) == expected
    assert Remote(url).files() == []


def test_what_a_killed_run_left_at_the_url_is_removed(
    run: Callable[..., dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/spill"
    remove = Remote.remove
    monkeypatch.setattr(Remote, "remove", lambda self, name="": None)  # as a kill leaves it
    run(spill=url)
    left = Remote(url).files()
    assert any("/spill/" in file.name for file in left)
    assert any("/out/" in file.name for file in left)
    monkeypatch.setattr(Remote, "remove", remove)
    run(spill=url)
    assert Remote(url).files() == []


def test_shards_that_do_not_arrive_publish_nothing(
    run: Callable[..., dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipelines.shard_exchange, "_take", lambda remote, plan: None)
    with pytest.raises(DataError, match=r"2000 rows in the files, 0 reached the shards; nothing was published"):
        run(spill=f"memory://{uuid.uuid4().hex}/spill", num_workers=1)
    assert not (tmp_path / "streams").exists()
