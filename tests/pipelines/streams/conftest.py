"""The stage over an EVENTS directory of few rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from features.vocabulary import Vocabulary, VocabularySet, key_type
from pipelines.streams import build_streams
from tests.pipelines.streams.event_files import Build, make_events, write_events

ROOT = Path(__file__).parents[3]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Runs the stage over an EVENTS directory with other `pipelines` settings; returns the dataset's directory."""
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["data"] |= {"timezone": "UTC", "earliest": "1970-01-01", "eval_days": 2}
    document["features"] |= {"item_categories": ["author"], "user_categories": ["degree"]}
    keys: dict[str, list[Any]] = {
        "user": [user * 1_000_003 for user in range(20)],
        "item": list(range(8)),
        "surface": [0, 1],
        "author": ["a", "b"],
        "degree": ["new"],
    }
    (tmp_path / "vocab").mkdir()
    VocabularySet(
        tuple(Vocabulary(f, pa.array(some, key_type(f)), np.ones(len(some), np.int64)) for f, some in keys.items())
    ).save(tmp_path / "vocab")

    def run(events: Path, name: str = "streams", **settings: Any) -> Path:
        document["pipelines"] |= {"num_workers": 1, "num_shards": 3, **settings}
        params = tmp_path / f"{name}.yaml"
        params.write_text(yaml.safe_dump(document))
        build_streams(params, events, tmp_path / "vocab", tmp_path / name)
        return tmp_path / name

    return run


@pytest.fixture
def events(tmp_path: Path) -> Path:
    write_events(tmp_path / "events", make_events())
    return tmp_path / "events"
