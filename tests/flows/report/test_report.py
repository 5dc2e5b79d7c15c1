"""The report: what it reads, what it refuses, and the page it writes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from features.dataset import open_dataset
from features.errors import DataError
from features.spec import FeatureSpec
from flows.report import __main__ as command
from flows.report.inputs import ReportPaths, read_inputs
from flows.report.lengths import measure_lengths
from flows.report.page import write_report
from flows.report.size import model_size
from model.config import ModelConfig
from model.ranker import Ranker

PARAMS = Path(__file__).parents[3] / "params.yaml"
TASKS = ModelConfig.load(PARAMS).heads.tasks
VOID = {"meta", "link", "br"}


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
    assert "int4 0.80001 – 0.68 MB 0.1503 1.2e-02 2.5 ms 3.2 ms 7,000" in text
    assert "4,608 candidates in 4,585 requests of the evaluation days on a CPU" in text
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
        *("metrics/calibration.csv", "metrics/inference.json", "streams/shard-00001-of-00002/users.arrow"),
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
    (paths.metrics / "loss.csv").write_text("step,cost\n1,2\n")
    with pytest.raises(DataError, match=r"loss\.csv: column 'loss' is missing"):
        read_inputs(paths)
    (paths.metrics / "loss.csv").write_text("step,loss\n1,low\n")
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


def test_model_size_is_that_of_the_allocated_model(spec: FeatureSpec) -> None:
    model = ModelConfig.load(PARAMS)
    ranker = Ranker(model, spec)
    size = model_size(model, spec)
    assert size.dense == sum(parameter.numel() for parameter in ranker.dense_parameters().values())
    assert size.tables == sum(table.numel() for table in ranker.embeddings.tables.weights().values())
