"""The report: what it reads, what it refuses, and the page it writes."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from features.config import FeaturesConfig
from features.dataset import open_dataset
from features.encode import context_fields, intensity_size
from features.errors import DataError
from features.manifest import (
    REQUESTS_FILE,
    USERS_FILE,
    Manifest,
    ShardEntry,
    file_entry,
    schemas_of,
    shard_name,
    write_manifest,
)
from features.schema import FORMAT_VERSION, ORDER, schema_hash
from features.spec import CategoricalField, FeatureSpec
from flows.report import __main__ as command
from flows.report.inputs import ReportPaths, read_inputs
from flows.report.lengths import measure_lengths
from flows.report.page import write_report
from flows.report.size import model_size
from model.config import ModelConfig
from model.ranker import Ranker

PARAMS = Path(__file__).parents[2] / "params.yaml"
TASKS = ModelConfig.load(PARAMS).heads.tasks
VOID = {"meta", "link", "br"}


def make_spec(features: FeaturesConfig, size: int = 50) -> FeatureSpec:
    def fields(names: tuple[str, ...]) -> tuple[CategoricalField, ...]:
        return tuple(CategoricalField(name=name, size=size) for name in names)

    return FeatureSpec(
        actions=features.actions,
        streams=tuple(features.streams),
        item_fields=fields(("item", *features.item_categories)),
        user_fields=fields(("user", *features.user_categories)),
        token_contexts=context_fields(features.token_contexts, 8),
        candidate_contexts=context_fields(features.candidate_contexts, 8),
        intensity_size=intensity_size(features.intensity),
    )


def filled(schema: pa.Schema, columns: dict[str, list[Any]]) -> pa.Table:
    """A table of the given columns; the others hold zeros and empty lists."""
    rows = len(next(iter(columns.values())))
    arrays = []
    for field in schema:
        default = [[]] * rows if pa.types.is_large_list(field.type) else [0] * rows
        arrays.append(pa.array(columns.get(field.name, default), field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def write_streams(directory: Path, spec: FeatureSpec) -> None:
    """Two shards: users with 0, 1 and 5 events, then one with 300; interaction streams are empty or of 2."""
    shards = [
        (
            {"consumption.item": [[], [7], [7] * 5], "interaction.item": [[], [], [7, 7]]},
            [1, 2, 2],
            [0, 1, 4],
            [0, 0, 1],
        ),
        ({"consumption.item": [[7] * 300], "interaction.item": [[]]}, [0], [0], [0]),
    ]
    users_schema, requests_schema = schemas_of(spec)
    entries = []
    for index, (users, user_rows, starts, interaction_starts) in enumerate(shards):
        name = shard_name(index, len(shards))
        (directory / name).mkdir(parents=True)
        requests = {"user_row": user_rows, "consumption_start": starts, "interaction_start": interaction_starts}
        for file, table in (
            (USERS_FILE, filled(users_schema, users)),
            (REQUESTS_FILE, filled(requests_schema, requests)),
        ):
            with pa.OSFile(str(directory / name / file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        entry = ShardEntry(
            name=name,
            files={file: file_entry(directory / name / file) for file in (USERS_FILE, REQUESTS_FILE)},
            users=len(users["consumption.item"]),
            requests=len(user_rows),
            candidates=0,
            events=0,
            duplicates=0,
            stream_events={},
        )
        entries.append(entry)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        order=ORDER,
        schema_hash=schema_hash(*schemas_of(spec)),
        params_hash="c0ffee",
        vocabulary_hash="beef",
        cut_ms=0,
        spec=spec,
        shards=tuple(entries),
        content_checksum="cafe",
    )
    write_manifest(directory, manifest)


def event_stats() -> dict[str, Any]:
    reasons = {"negative id": 2, "null key": 1}
    file = {"file": "log.csv", "read": 309, "kept": 306, "quarantined": 3, "reasons": reasons}
    days = {f"2022-04-{day}": 50 for day in range(22, 29)}
    stats = {"first_day": "2022-04-22", "last_day": "2022-04-28", "days": days, "files": [file], "side_tables": []}
    return {**stats, "read": 309, "kept": 306, "quarantined": 3, "reasons": reasons}


def stream_stats(features: FeaturesConfig) -> dict[str, Any]:
    streams = {
        name: {"events": 306, "users": 4, "actions": dict.fromkeys(features.actions, 61)} for name in features.streams
    }
    requests = {"train": 3, "eval": 1}
    return {
        **{"read": 306, "events": 304, "duplicates": 2, "users": 4, "candidates": 304, "cut_ms": 0},
        **{"requests": requests, "streams": streams},
    }


def evaluation() -> dict[str, Any]:
    task = {"ne": 0.8, "auc": 0.75, "gauc": 0.7, "positives": 120, "base_rate": 0.4, "num_candidates": 300}
    tasks: dict[str, Any] = {name: {**task, "floor_ne": 0.9, "floor_auc": 0.7} for name in TASKS}
    tasks["is_hate"] = {**dict.fromkeys(tasks["is_hate"]), "positives": 0, "base_rate": 0.0, "num_candidates": 300}
    means = {"c_ne": 0.8, "e_ne": 0.95, "floor_c_ne": 0.9, "floor_e_ne": 0.9}
    return {"tasks": tasks, **means, "num_requests": 77, "num_candidates": 300, "cut_ms": 0}


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def paths(tmp_path: Path) -> ReportPaths:
    paths = ReportPaths(
        params=tmp_path / "params.yaml",
        events=tmp_path / "events",
        vocab=tmp_path / "vocab",
        streams=tmp_path / "streams",
        validation=tmp_path / "validation.json",
        metrics=tmp_path / "metrics",
    )
    for folder in (paths.events, paths.vocab, paths.metrics):
        folder.mkdir()
    paths.params.write_text(PARAMS.read_text())
    features = FeaturesConfig.load(PARAMS)
    side = {"events": 200, "unknown": 2, "unknown_share": 0.01}
    write_streams(paths.streams, make_spec(features))
    documents = {
        paths.events / "stats.json": event_stats(),
        paths.vocab / "stats.json": {name: {"size": 50, "train": side, "eval": side} for name in ("user", "item")},
        paths.streams / "stats.json": stream_stats(features),
        paths.validation: {"passed": True, "checks": {"order": {"pairs": 12345}}},
        paths.metrics / "train.json": {"loss": 0.5, "steps": 60, "task_losses": {"is_click": 0.6}},
        paths.metrics / "evaluate.json": evaluation(),
    }
    for path, document in documents.items():
        path.write_text(json.dumps(document))
    write_csv(paths.metrics / "loss.csv", ["step", "loss"], [[step, 1 / step] for step in range(1, 60)])
    bins = [[task, index, 0.1 * index, 0.09 * index, 30] for task in TASKS for index in range(1, 6)]
    write_csv(paths.metrics / "calibration.csv", ["task", "bin", "mean_predicted", "mean_label", "count"], bins)
    return paths


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class Page(HTMLParser):
    """Ids, addresses and text of a page, and whether its elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self._open.append(tag)
        values = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [value or "" for name, value in values.items() if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def page(paths: ReportPaths, tmp_path: Path) -> Page:
    write_report(paths, tmp_path / "reports" / "index.html")
    return Page((tmp_path / "reports" / "index.html").read_text())


def test_page_needs_no_network_and_holds_every_figure_once(page: Page, tmp_path: Path) -> None:
    assert page.addresses == ["data:,"]
    text = (tmp_path / "reports" / "index.html").read_text()
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert len(re.findall(r"\* plotly\.js v\d", text)) == 1
    assert len(page.ids) == len(set(page.ids))
    names = ["ne-gain", "loss", *(f"calibration-{task}" for task in TASKS)]
    names += [f"{kind}-{stream}" for kind in ("lengths", "mask") for stream in ("consumption", "interaction")]
    assert {f"figure-{name}" for name in names} == {name for name in page.ids if name.startswith("figure-")}


def test_page_says_what_was_measured(page: Page) -> None:
    text = page.text
    assert "KuaiRand-format logs of 22 to 28 April 2022" in text
    assert "the last 4 days, 25 to 28 April 2022 (Asia/Shanghai)" in text
    assert "floor 0.9000, 11.1 % better" in text
    assert "floor 0.9000, 5.6 % worse" in text
    assert "309 rows read = 306 kept + 3 quarantined" in text
    assert "306 kept rows = 304 events + 2 exact duplicates" in text
    assert "is_click 0.8000 0.9000 +11.1 % 0.7500 0.7000 +0.0500 0.7000 40.0 % 120" in text
    assert "negative id 2 null key 1 all reasons 3" in text
    assert "The median user has 3 events" in text
    assert "12,345" in text
    assert "does not add up" not in text


def test_a_task_with_one_class_has_dashes_and_no_bar(page: Page, tmp_path: Path) -> None:
    assert "is_hate – – – – – – – 0.00 % 0" in page.text
    text = (tmp_path / "reports" / "index.html").read_text()
    bars = text[text.index('id="figure-ne-gain"') :]
    bars = bars[: bars.index("</script>")]
    assert "is_like" in bars
    assert "is_hate" not in bars


def test_an_account_that_does_not_meet_is_shown(paths: ReportPaths, tmp_path: Path) -> None:
    edit(paths.events / "stats.json", kept=305)
    write_report(paths, tmp_path / "index.html")
    assert Page((tmp_path / "index.html").read_text()).text.count("does not add up") == 2


def test_equal_inputs_give_equal_bytes(paths: ReportPaths, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report(paths, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_text_from_files_is_escaped(paths: ReportPaths, tmp_path: Path) -> None:
    edit(paths.events / "stats.json", reasons={"<script>alert(1)</script>": 3})
    write_report(paths, tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize(
    "name",
    [
        *("params.yaml", "events/stats.json", "vocab/stats.json", "streams/stats.json", "streams/manifest.json"),
        *("validation.json", "metrics/train.json", "metrics/loss.csv", "metrics/evaluate.json"),
        *("metrics/calibration.csv", "streams/shard-00001-of-00002/users.arrow"),
    ],
)
def test_a_missing_input_is_named_and_no_page_appears(paths: ReportPaths, tmp_path: Path, name: str) -> None:
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=re.escape(name)):
        write_report(paths, tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


def test_wrong_content_is_named(paths: ReportPaths) -> None:
    edit(paths.streams / "stats.json", events="many")
    with pytest.raises(DataError, match=r"stats\.json: stats\.events: .*integer"):
        read_inputs(paths)
    edit(paths.streams / "stats.json", events=304)
    write_csv(paths.metrics / "loss.csv", ["step", "cost"], [[1, 2]])
    with pytest.raises(DataError, match=r"loss\.csv: column 'loss' is missing"):
        read_inputs(paths)
    write_csv(paths.metrics / "loss.csv", ["step", "loss"], [[1, "low"]])
    with pytest.raises(DataError, match=r"loss\.csv: column 'loss' has 'low', a number is expected"):
        read_inputs(paths)


def test_the_command_writes_the_page_or_one_line_of_error(
    paths: ReportPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reports" / "index.html"
    arguments = [f"--{name}={value}" for name, value in vars(paths).items()]
    monkeypatch.setattr("sys.argv", ["report", *arguments, f"--out={out}"])
    assert command.main() == 0
    assert str(out) in capsys.readouterr().out
    paths.validation.unlink()
    assert command.main() == 1
    assert capsys.readouterr().err == f"{paths.validation}: no such file\n"
    assert out.exists()


def test_lengths_are_those_of_users_and_of_the_histories_at_request_time(paths: ReportPaths) -> None:
    shares = measure_lengths(open_dataset(paths.streams))
    consumption = shares["consumption"]
    assert consumption.labels[:4] == ("0", "1", "2–3", "4–7")
    assert consumption.labels[-1] == "256–511"
    users, requests = dict(zip(consumption.labels, consumption.users, strict=True)), consumption.requests
    assert {label: share for label, share in users.items() if share} == dict.fromkeys(
        ("0", "1", "4–7", "256–511"), 0.25
    )
    found = {label: share for label, share in zip(consumption.labels, requests, strict=True) if share}
    assert found == {"1": 0.5, "4–7": 0.25, "256–511": 0.25}
    assert (consumption.median_user, consumption.median_request) == (3.0, 2.5)
    assert shares["interaction"].requests == (0.5, 0.25, 0.25)


def test_model_size_is_that_of_the_allocated_model() -> None:
    model, spec = ModelConfig.load(PARAMS), make_spec(FeaturesConfig.load(PARAMS), size=37)
    ranker = Ranker(model, spec)
    size = model_size(model, spec)
    assert size.dense == sum(parameter.numel() for parameter in ranker.dense_parameters().values())
    assert size.tables == sum(table.numel() for table in ranker.embeddings.tables.weights().values())
