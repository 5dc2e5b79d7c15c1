"""Small raw logs and parameter files that the pipeline tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
FIRST_MS = 1_650_600_000_000  # 2022-04-22 12:00 in Shanghai
DAY_MS = 86_400_000


@pytest.fixture
def real_data() -> Path:
    """The folder of real logs."""
    folder = os.environ.get("HSTU2_REAL_DATA")
    if not folder:
        pytest.skip("HSTU2_REAL_DATA is not set")
    return Path(folder)


@pytest.fixture
def write_params(tmp_path: Path) -> Callable[..., Path]:
    """Writes a params.yaml: the repository's own with sections updated key by key, no side features by default."""

    def write(data_path: Path, **sections: dict[str, Any]) -> Path:
        document = yaml.safe_load((ROOT / "params.yaml").read_text())
        document["data"]["path"] = str(data_path)
        document["features"] |= {"item_categories": [], "user_categories": []}
        document["pipelines"]["store"] = None
        for section, changes in sections.items():
            document[section] |= changes
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


@pytest.fixture
def log_line() -> Callable[..., str]:
    """One row of a KuaiRand log with the given fields, the others harmless."""
    harmless = dict.fromkeys(LOG_HEADER.split(","), 0) | {
        "user_id": 1,
        "video_id": 10,
        "date": 20220422,
        "hourmin": 1200,
        "time_ms": FIRST_MS,
        "play_time_ms": 5000,
        "duration_ms": 10000,
        "tab": 1,
    }

    def line(**fields: object) -> str:
        assert set(fields) <= set(harmless)
        return ",".join(str(value) for value in (harmless | fields).values())

    return line


@pytest.fixture
def write_log(tmp_path: Path) -> Callable[..., Path]:
    """Writes lines under KuaiRand's header into the folder `raw` and returns the folder."""

    def write(lines: list[str], name: str = "log_standard_4_22_to_5_08_pure.csv", header: str = LOG_HEADER) -> Path:
        folder = tmp_path / "raw"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("\n".join([header, *lines]) + "\n")
        return folder

    return write
