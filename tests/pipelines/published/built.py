"""The settings that docs/sources.md shows, and what a run with them left."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

ROOT = Path(__file__).parents[3]
EXAMPLES = {
    document["data"]["source"]: document
    for document in map(
        yaml.safe_load, re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "sources.md").read_text(), re.DOTALL)
    )
}


@dataclass(frozen=True)
class Built:
    """What a run left: its account, its events (in source order) and its quarantine."""

    stats: dict[str, Any]
    events: pl.DataFrame
    quarantine: pl.DataFrame
    folder: Path

    def masks(self, source: str) -> list[set[str]]:
        names = EXAMPLES[source]["features"]["actions"]
        return [{name for bit, name in enumerate(names) if mask >> bit & 1} for mask in self.events["action_mask"]]


Example = Callable[..., Path]
Build = Callable[[Path], Built]
