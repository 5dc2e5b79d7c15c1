"""A folder with three days of logs, and a record of what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines import increment_logs
from pipelines.sources.raw import RawRows
from tests.pipelines.increment.day_logs import Workspace, put_day


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three days of logs, none read yet."""
    for day in range(3):
        put_day(tmp_path / "raw", day)
    return Workspace(tmp_path)


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were parsed since."""
    names: list[str] = []
    original = increment_logs.read_unit

    def read(*args: Any) -> RawRows:
        names.append(args[0].file.name)
        return original(*args)

    monkeypatch.setattr(increment_logs, "read_unit", read)
    return names
