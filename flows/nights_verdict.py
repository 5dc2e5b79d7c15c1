"""Whether simulated nights ended as they had to: what is measured goes into bench/nights.json."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from features.files import read_json
from features.vocabulary import VocabularySet
from flows.models import ModelStore
from flows.nightly.dates import DAY
from flows.nightly.record import NightRecord, Records
from flows.nightly.workspace import TAG_PREFIX, git
from flows.nights_scenario import FIRST_NIGHT, Simulation
from flows.process import interpreter_environment
from flows.stage import stage_names

EXPECTED = {
    "normal": ("promoted", "kept"),
    "missing": ("failed",),
    "late": ("promoted", "kept"),
    "corrupt": ("promoted", "kept"),
    "feed": ("failed",),
    "worse": ("kept",),
    "crash": ("promoted", "kept"),
    "overlap": ("promoted", "kept"),
    "again": ("promoted", "kept"),
}
UNCHANGED_LIMIT_SECONDS = 10.0
TOTAL_LIMIT_SECONDS = 1200.0


def verdict(simulation: Simulation, num_nights: int) -> tuple[dict[str, Any], list[str]]:
    """The figures of a simulation, and what is wrong with it."""
    journal = read_json(simulation.journal)
    records = Records(simulation.places.folder).all()
    dates = [FIRST_NIGHT + number * DAY for number in range(num_nights)]
    problems, nights = [], {}
    for date in dates:
        played, record = journal["nights"][str(date)], records.get(date)
        if record is None:
            problems.append(f"{date} has no record")
            continue
        nights[str(date)] = {**played, **describe(record, simulation.root)}
        if record.outcome not in EXPECTED[played["kind"]]:
            problems.append(f"{date} ({played['kind']}) ended {record.outcome}: {record.reason}")
    problems += never_worse(list(records.values())) + nothing_lost(simulation, records.values())
    rows, renumbered = vocabulary_growth(simulation, records.values())
    problems += renumbered
    restored = restore(simulation, [record for record in records.values() if record.tag is not None])
    problems += [] if restored["stages_run"] == 0 else [f"{restored['tag']} in another clone: {restored['output']}"]
    unchanged = _unchanged(simulation)
    if unchanged is not None and unchanged > UNCHANGED_LIMIT_SECONDS:
        problems.append(f"a night where nothing changed took {unchanged} s")
    total = sum(night["seconds"] for night in journal["nights"].values())
    if total > TOTAL_LIMIT_SECONDS:
        problems.append(f"the nights took {total:.0f} s, more than {TOTAL_LIMIT_SECONDS:.0f}")
    summary = {
        "nights": len(nights),
        "outcomes": {
            word: sum(n["outcome"] == word for n in nights.values()) for word in ("promoted", "kept", "failed")
        },
        "total_seconds": round(total, 1),
        "median_seconds_of_a_night": statistics.median(n["seconds"] for n in nights.values()),
        "unchanged_night_seconds": unchanged,
        "started_from_the_champion": sum(str(record.start).endswith("/ranker") for record in records.values()),
        "vocabulary_rows": rows,
        "restored_in_another_clone": restored,
        "problems": problems,
        "cores": os.cpu_count(),
        "commit": journal["commit"],
    }
    return {"summary": summary, "nights": nights}, problems


def describe(record: NightRecord, root: Path) -> dict[str, Any]:
    """What bench/nights.json tells of a night, with paths from the repository's root."""

    def first_line(text: str) -> str:
        return text.splitlines()[0].replace(f"{root}/", "")

    gate = record.gate
    return {
        "outcome": record.outcome,
        "reason": first_line(record.reason),
        "earlier": [first_line(text) for text in record.earlier],
        "resumed": record.resumed,
        "left_out": [] if record.data is None else [str(day) for day in record.data.left_out],
        "absent": [] if record.data is None else [str(day) for day in record.data.absent],
        "mean_ne": None if gate is None else gate.metric,
        "champion_mean_ne": None if gate is None else gate.champion_metric,
        "steps": record.seconds,
    }


def never_worse(records: list[NightRecord]) -> list[str]:
    """Promotions that made the gate's metric worse on the candidates that both models scored."""
    return [
        f"{record.date}: promoted with mean NE {record.gate.metric} against {record.gate.champion_metric}"
        for record in records
        if record.outcome == "promoted"
        and record.gate is not None
        and record.gate.champion_metric is not None
        and (record.gate.metric is None or record.gate.metric > record.gate.champion_metric)
    ]


def nothing_lost(simulation: Simulation, records: Any) -> list[str]:
    """Nights without a tag or an upload, models that are not in the store, a champion that is damaged."""
    tags = set(git(simulation.root, "tag", "--list", f"{TAG_PREFIX}/*").splitlines())
    store, problems = ModelStore(simulation.places.models), []
    known = {stored.model for stored in store.all()}
    for record in records:
        if record.outcome == "failed":
            continue
        if record.tag not in tags or not record.pushed:
            problems.append(f"{record.date}: tag {record.tag}, uploaded {record.pushed}")
        if record.outcome == "promoted" and record.model not in known:
            problems.append(f"{record.date}: its champion {record.model} is not in the store")
    champion = store.champion()
    if champion is None:
        return [*problems, "there is no champion"]
    store.verify(champion.model)
    status = git(simulation.root, "status", "--porcelain", "--untracked-files=no")
    return problems + ([f"the working tree was touched: {status}"] if status else [])


def vocabulary_growth(simulation: Simulation, records: Iterable[NightRecord]) -> tuple[list[int], list[str]]:
    """Rows of each night's vocabulary, users and items; and nights that did not only append to their champion's.

    Of the nights whose model is still there: one that was never promoted goes after some days.
    """
    store, rows, problems = ModelStore(simulation.places.models), [], []
    there = {stored.model for stored in store.all()}
    for record in records:
        if record.model not in there or record.tag is None:
            continue
        mine = VocabularySet.load(store.path(record.model) / "vocab")
        rows.append(mine.field("user").size + mine.field("item").size)
        params = yaml.safe_load(git(simulation.root, "show", f"{record.tag}:params.yaml"))
        base = params["features"]["vocabulary"]["base"]
        for before in VocabularySet.load(simulation.places.workspace / base).vocabularies if base else ():
            now = mine.field(before.field).keys
            if not now.slice(0, len(before.keys)).equals(before.keys):
                problems.append(f"{record.date}: {before.field} was numbered anew")
    return rows, problems


def restore(simulation: Simulation, records: list[NightRecord]) -> dict[str, Any]:
    """Restores a past night in another clone from the DVC remote: every stage must find itself up to date."""
    tag = str(records[len(records) // 2].tag)
    clone = simulation.root.parent.absolute() / "clone"
    shutil.rmtree(clone, ignore_errors=True)
    git(simulation.root, "clone", "--quiet", str(simulation.root.absolute()), str(clone))
    git(clone, "checkout", "--quiet", tag)
    start = time.monotonic()
    output = "".join(_dvc(clone, *words) for words in (("pull",), ("repro",)))
    unchanged = [stage for stage in stage_names(clone) if f"Stage '{stage}' didn't change, skipping" in output]
    stages_run = len(stage_names(clone)) - len(unchanged)
    return {
        "tag": tag,
        "stages_run": stages_run,
        "seconds": round(time.monotonic() - start, 1),
        "output": "" if stages_run == 0 else output[-2000:],
    }


def _dvc(workspace: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=workspace,
        env=interpreter_environment(os.environ) | {"DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def _unchanged(simulation: Simulation) -> float | None:
    path = simulation.root.parent / "unchanged.json"
    return float(read_json(path)["seconds"]) if path.is_file() else None
