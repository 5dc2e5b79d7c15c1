"""Typed, closed configuration of the `pipelines` section of params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from features.config import Section

LOCAL = "local"


class PipelinesConfig(Section):
    """How the pipelines run; nothing here changes the content of what they write.

    Attributes:
        spill: URL through which workers exchange everything with the driver; null when they share its disk.
    """

    section: ClassVar[str] = "pipelines"

    runner: str
    options: tuple[str, ...]
    num_workers: Annotated[int, Field(ge=1)]
    num_shards: Annotated[int, Field(ge=1, le=32_767)]
    rows_per_unit: Annotated[int, Field(ge=1)]
    spill: str | None = None
    store: Path | None = None
