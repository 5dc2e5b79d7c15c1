"""What a retrain of a date would do, and why. Nothing here writes anything but the cache of digests."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.models import Promotion
from flows.nightly.config import RetrainConfig
from flows.nightly.dates import window_days
from flows.nightly.logs import LandedFile, Snapshot, digest_files, digest_of, files_of
from flows.nightly.record import DataAccount, NightRecord, refused_days
from flows.nightly.workspace import NightlyPlaces


@dataclass(frozen=True)
class Window:
    """What a date's night reads.

    Attributes:
        files: of the days that take part, and the side tables.
        snapshot: their digests.
        account: how much it is, and which days do not take part.
        day_digest: of the date's own files; None without any.
    """

    files: tuple[LandedFile, ...]
    snapshot: Snapshot
    account: DataAccount
    day_digest: str | None


def look_at_window(
    files: Sequence[LandedFile],
    date: datetime.date,
    config: RetrainConfig,
    *,
    places: NightlyPlaces,
    records: Mapping[datetime.date, NightRecord],
) -> Window:
    """Reads the window's files of the landing folder.

    Days whose own night failed on their logs stay out until those change. They and days without logs are listed.
    """
    days = window_days(date, config.window_days)
    snapshot = digest_files(files_of(files, days), places.folder)
    digests = day_digests(files, snapshot)
    refused = refused_days({day: record for day, record in records.items() if day != date}, digests)
    out = sorted(set(days) & refused)
    kept = files_of(files, set(days) - set(out))
    taken = Snapshot(
        {file.name: snapshot.digests[file.name] for file in kept}, sum(file.path.stat().st_size for file in kept)
    )
    # Days before the first logs are no gap.
    first = min((file.date for file in files if file.date is not None), default=date)
    absent = tuple(day for day in days if day not in digests and day >= first)
    account = DataAccount(files=len(kept), bytes=taken.num_bytes, left_out=tuple(out), absent=absent)
    return Window(tuple(kept), taken, account, digests.get(date))


def day_digests(files: Collection[LandedFile], snapshot: Snapshot) -> dict[datetime.date, str]:
    """One digest per day of the snapshot."""
    by_day: dict[datetime.date, dict[str, str]] = {}
    for file in files:
        if file.date is not None and file.name in snapshot.digests:
            by_day.setdefault(file.date, {})[file.name] = snapshot.digests[file.name]
    return {day: digest_of(digests) for day, digests in by_day.items()}


@dataclass(frozen=True)
class Decision:
    """Whether to run a date, and why or why not."""

    run: bool
    why: str


def decide(record: NightRecord | None, digest: str, *, force: bool) -> Decision:
    """A date is run when it has no record, when its last one failed, when its logs changed, or when told to.

    Args:
        record: the date's.
        digest: of the logs that its window holds now.
        force: run it in any case.
    """
    if record is None:
        return Decision(True, "has not been run")
    if force:
        return Decision(True, "was asked for again")
    if record.outcome == "failed":
        return Decision(True, f"failed before: {record.reason}")
    if record.digest != digest:
        return Decision(True, "the logs of its window have changed since it was run")
    return Decision(False, f"was {record.outcome} and its logs have not changed: {record.reason}")


def window_settings(
    date: datetime.date, config: RetrainConfig, window: Window, *, champion: Promotion | None, baseline: str | None
) -> dict[str, Any]:
    """The edits that a night makes in params.yaml. Paths are relative to the worktree, so that no machine is in them.

    Args:
        date: the data date.
        config: section `retrain`.
        window: a gap that is accounted for is no drift.
        champion: whose vocabulary is extended, and whose weights a warm start takes.
        baseline: profile of the last night that passed `validate`.
    """
    gaps = len(window.account.absent) + len(window.account.left_out)
    settings: dict[str, Any] = {
        "data.path": "logs",
        "data.window": {"until": date.isoformat(), "days": config.window_days},
        "validate.baseline": None if baseline is None else f"../profiles/{baseline}",
        "validate.drift.max_missing_days": gaps,
    }
    store = None if champion is None else f"../../models/store/{champion.model}"
    settings["features.vocabulary.base"] = None if store is None else f"{store}/vocab"
    settings["train.warm_start"] = f"{store}/ranker" if config.warm_start != "never" and store is not None else None
    return settings


def stale_stages(
    stages: Mapping[str, Mapping[str, Any]], changed_paths: Collection[str], changed_sections: Collection[str]
) -> dict[str, str]:
    """The stages that DVC would run, each with its reason, from what changed since the last night.

    Args:
        stages: section `stages` of dvc.yaml, its paths resolved.
        changed_paths: files and folders, relative to the workspace.
        changed_sections: of params.yaml.
    """
    stale: dict[str, str] = {}
    written: dict[str, str] = {}
    for name, stage in stages.items():
        dependencies = [str(dependency) for dependency in stage.get("deps", ())]
        reasons = [section for section in stage.get("params", ()) if section in changed_sections]
        reasons = [f"params {section}" for section in reasons]
        for dependency in dependencies:
            if dependency in written:
                reasons.append(f"{dependency} of {written[dependency]}")
            elif any(path == dependency or path.startswith(f"{dependency}/") for path in changed_paths):
                reasons.append(dependency)
        if reasons:
            stale[name] = ", ".join(reasons)
            written |= dict.fromkeys((*stage.get("outs", ()), *stage.get("metrics", ())), name)
    return stale
