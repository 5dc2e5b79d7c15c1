"""Runs of all data stages with the settings that docs/sources.md shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from features.files import read_json
from pipelines.ingest import ingest
from pipelines.streams import build_streams
from pipelines.validate import Inputs, validate
from pipelines.vocab import build_vocabularies
from tests.pipelines.published.built import EXAMPLES, ROOT, Built


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


@pytest.fixture
def example(tmp_path: Path) -> Callable[..., Path]:
    """Writes a params.yaml: the repository's own with the document's settings for a source."""

    def write(source: str, **changes: dict[str, Any]) -> Path:
        document = yaml.safe_load((ROOT / "params.yaml").read_text())
        for section, settings in EXAMPLES[source].items():
            document[section] |= settings
        document["data"]["path"] = str(tmp_path / "raw")
        document["features"]["vocabulary"]["min_count"] = 1
        document["pipelines"] |= {"num_workers": 1, "num_shards": 2}
        for section, settings in changes.items():
            document[section] |= settings
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


@pytest.fixture
def build(tmp_path: Path) -> Callable[[Path], Built]:
    """Runs ingest, vocab, streams and validate."""

    def run(params: Path) -> Built:
        out = tmp_path / "out"
        inputs = Inputs(out / "events", out / "vocab", out / "streams")
        ingest(params, inputs.events, out / "quarantine")
        build_vocabularies(params, inputs.events, inputs.vocab)
        build_streams(params, inputs.events, inputs.vocab, inputs.streams)
        validate(params, inputs, out / "validation.json")
        assert read_json(out / "validation.json")["passed"]
        stats = read_json(inputs.events / "stats.json")
        events = pl.read_parquet(inputs.events / "date=*" / "*.parquet", hive_partitioning=False).sort("source_order")
        quarantine = pl.read_parquet(out / "quarantine" / "rows.parquet")
        assert stats["kept"] + stats["quarantined"] == stats["read"]
        assert (stats["kept"], stats["quarantined"]) == (len(events), len(quarantine))
        return Built(stats, events, quarantine, out)

    return run
