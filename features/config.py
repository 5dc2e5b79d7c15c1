"""Typed, closed configuration of the `data` and `features` sections of params.yaml."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from features.errors import DataError

TokenContext = Literal["surface", "hour", "weekday", "duration", "gap"]
CandidateContext = Literal["surface", "hour", "weekday", "duration"]
Edges = tuple[float, ...]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a stage reads params.yaml several times
TABULAR_SOURCES = ("parquet", "csv", "jsonl")


class Closed(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Section(Closed):
    """One top-level section of params.yaml; subclasses set `section`."""

    section: ClassVar[str]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads and checks the section.

        Raises:
            DataError: the file or section is missing, a key is unknown, or a value is out of range.
        """
        try:
            document = yaml.load(path.read_text(), Loader=_LOADER)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except yaml.YAMLError as error:
            raise DataError(f"{path}: not valid YAML: {error}") from None
        if not isinstance(document, dict) or cls.section not in document:
            raise DataError(f"{path}: section '{cls.section}' is missing")
        try:
            return cls.model_validate(document[cls.section])
        except ValidationError as error:
            raise DataError(describe(error, path, cls.section)) from None


def describe(error: ValidationError, path: Path, section: str) -> str:
    """One line per problem: file, dotted key and reason."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in (section, *problem["loc"]))
        reason = "unknown key (a typo?)" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"{path}: {key}: {reason}")
    return "\n".join(lines)


class TabularColumns(Closed):
    """Which columns of a log hold what; `null` where the log has no such column.

    watch_percent (of the duration) and duration_s (seconds) stand for watch_ms and duration_ms where a log has those.
    """

    user_id: str
    item_id: str
    timestamp: str
    timestamp_unit: Literal["s", "ms", "us"]
    watch_ms: str | None = None
    watch_percent: str | None = None
    duration_ms: str | None = None
    duration_s: str | None = None
    value: str | None = None
    surface: str | None = None

    @model_validator(mode="after")
    def _one_column_a_use(self) -> Self:
        if self.watch_ms and self.watch_percent:
            raise ValueError("give either watch_ms or watch_percent")
        if self.duration_ms and self.duration_s:
            raise ValueError("give either duration_ms or duration_s")
        if self.watch_percent and not (self.duration_ms or self.duration_s):
            raise ValueError("watch_percent is a part of the duration, give duration_ms or duration_s")
        return self


class SideTable(Closed):
    """A file of static features, one row per user or item; `features` maps our names to its columns."""

    path: Path
    key: str
    features: dict[str, str]


class ActionRange(Closed):
    """An action that is told by min <= column <= max, as a rating of at least 4 is a like."""

    column: str
    min: float | None = None
    max: float | None = None


class TabularMapping(Closed):
    """Mapping of a generic log.

    Actions come from 0/1 columns, or from one event-type column, and beside either of them or alone from ranges of
    numbers. separator, header (the columns' names, where the first line is a row already) and encoding are of CSV
    files; records is of JSON lines: the field that holds a list of rows, whose fields are then `<records>.<field>`.
    """

    pattern: str
    columns: TabularColumns
    separator: Annotated[str, Field(min_length=1)] = ","
    header: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    records: str | None = None
    action_columns: dict[str, str] = {}
    action_column: str | None = None
    action_values: dict[str, str] = {}
    action_ranges: dict[str, ActionRange] = {}
    users: SideTable | None = None
    items: SideTable | None = None

    @model_validator(mode="after")
    def _kinds_of_actions(self) -> Self:
        if self.action_columns and self.action_column:
            raise ValueError("give either action_columns or action_column with action_values")
        if bool(self.action_column) != bool(self.action_values):
            raise ValueError("action_column and action_values need each other")
        if not (self.action_columns or self.action_column or self.action_ranges):
            raise ValueError("give action_columns, action_column with action_values, or action_ranges")
        return self


class WindowConfig(Closed):
    """The local days that the dataset holds: `days` of them, `until` is the last."""

    until: datetime.date
    days: Annotated[int, Field(ge=1)]

    @property
    def first(self) -> datetime.date:
        """The first day."""
        return self.until - datetime.timedelta(days=self.days - 1)


class DataConfig(Section):
    """Where the raw logs are and how to read them."""

    section: ClassVar[str] = "data"

    source: Literal["kuairand", "movielens", "otto", "taobao", "yambda", "parquet", "csv", "jsonl"]
    path: Path
    timezone: str
    earliest: datetime.date
    latest: datetime.date
    window: WindowConfig | None
    eval_days: Annotated[int, Field(ge=1)]
    max_quarantine_ratio: Annotated[float, Field(ge=0, le=1)]
    tabular: TabularMapping | None

    @field_validator("path", mode="before")
    @classmethod
    def _on_the_disk(cls, path: object) -> object:
        # As a Path it would lose a slash and be a folder that does not exist.
        if isinstance(path, str) and "://" in path:
            raise ValueError(f"{path} is a URL; `hstu2 run --data {path}` keeps a copy and puts its folder here")
        return path

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"unknown time zone '{name}'") from None
        return name

    @model_validator(mode="after")
    def _mapping_when_needed(self) -> Self:
        if (self.source in TABULAR_SOURCES) != (self.tabular is not None):
            raise ValueError("'tabular' is for the sources parquet, csv and jsonl, and they need it")
        if self.tabular is not None:
            csv_only = (self.tabular.separator, self.tabular.header, self.tabular.encoding) != (",", None, "utf-8")
            if csv_only and self.source != "csv":
                raise ValueError("tabular: separator, header and encoding are for the source csv")
            if self.tabular.records is not None and self.source != "jsonl":
                raise ValueError("tabular: records is for the source jsonl")
        return self


class IntensityConfig(Closed):
    """Bucket edges of the action intensity (ascending)."""

    watch_ratio_edges: Edges
    watch_ms_edges: Edges
    value_edges: Edges

    @field_validator("*")
    @classmethod
    def _ascending(cls, edges: Edges) -> Edges:
        if list(edges) != sorted(set(edges)):
            raise ValueError("edges must be strictly ascending")
        return edges


class RequestsConfig(Closed):
    """How impressions become requests."""

    gap_ms: Annotated[int, Field(ge=0)]
    max_candidates: Annotated[int, Field(ge=1, le=100_000)]


class VocabularyConfig(Closed):
    """How raw ids become rows."""

    min_count: Annotated[int, Field(ge=1)]
    base: Path | None


class FeaturesConfig(Section):
    """What a token is made of."""

    section: ClassVar[str] = "features"

    actions: Annotated[tuple[str, ...], Field(min_length=1, max_length=32)]
    streams: dict[str, Literal["all"] | tuple[str, ...]]
    intensity: IntensityConfig
    token_contexts: tuple[TokenContext, ...]
    candidate_contexts: tuple[CandidateContext, ...]
    item_categories: tuple[str, ...]
    user_categories: tuple[str, ...]
    requests: RequestsConfig
    vocabulary: VocabularyConfig

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.actions)) != len(self.actions):
            raise ValueError("actions: a name is listed twice")
        if "consumption" not in self.streams:
            raise ValueError("streams: 'consumption' is required, it holds the impressions")
        for stream, actions in self.streams.items():
            unknown = [] if actions == "all" else sorted(set(actions) - set(self.actions))
            if unknown:
                raise ValueError(f"streams.{stream}: unknown action {unknown[0]!r}")
        return self
