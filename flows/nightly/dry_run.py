"""What `hstu2 retrain --dry-run` prints: what a date's night would do and why, with nothing run or written."""

from __future__ import annotations

import datetime
import time
from typing import Any

import yaml

from features.config import DataConfig
from features.errors import DataError
from flows.models import ModelStore
from flows.nightly.config import RetrainConfig
from flows.nightly.dates import day_end
from flows.nightly.logs import has_settled, list_logs
from flows.nightly.night import logs_folder
from flows.nightly.plan import decide, look_at_window, stale_stages, window_settings
from flows.nightly.record import Records
from flows.nightly.workspace import TAG_PREFIX, NightlyPlaces, committed, git


def describe_night(places: NightlyPlaces, date: datetime.date, commit: str, *, force: bool) -> list[str]:
    """Lines about one date.

    Args:
        places: of the repository.
        date: the data date.
        commit: whose code and settings it would run.
        force: as for a real run.

    Raises:
        DataError: the committed settings are not valid, or there is no folder of logs.
    """
    config, data = committed(places.root, commit, RetrainConfig), committed(places.root, commit, DataConfig)
    records, store = Records(places.folder), ModelStore(places.models)
    files = list_logs(logs_folder(places, config), config.day_pattern)
    if not has_settled(files, date, now=time.time(), settle_seconds=config.settle_seconds):
        end = day_end(date, data.timezone) + datetime.timedelta(minutes=config.deadline_minutes)
        return [f"{date} would wait for its logs until {end:%Y-%m-%d %H:%M} UTC, then fail: they are not there"]
    window = look_at_window(files, date, config, places=places, records=records.all())
    decision = decide(records.get(date), window.snapshot.digest, force=force)
    if not decision.run:
        return [f"{date} would not run: it {decision.why}"]
    account, champion = window.account, store.champion()
    lines = [
        f"{date} would run: it {decision.why}",
        f"  logs: {account.files} files, {account.bytes:,} bytes"
        + "".join(
            f"; {what} {', '.join(map(str, days))}"
            for what, days in (("left out", account.left_out), ("without logs", account.absent))
            if days
        ),
        f"  code and settings: {git(places.root, 'log', '-1', '--format=%h %s', commit)}",
        f"  champion to beat: {'none' if champion is None else f'{champion.model} of {champion.date}'}",
    ]
    profiles = [record.profile for day, record in records.all().items() if day < date and record.profile]
    settings = window_settings(date, config, window, champion=champion, baseline=profiles[-1] if profiles else None)
    lines += [f"  {key}: {value}" for key, value in settings.items()]
    return lines + [f"  stage {name}: {why}" for name, why in _stages(places, commit, settings).items()]


def _stages(places: NightlyPlaces, commit: str, settings: dict[str, Any]) -> dict[str, str]:
    """The stages to run, by what changed since the newest night's commit."""
    document = git(places.root, "show", f"{commit}:dvc.yaml").replace("${data.path}", "logs")
    stages = yaml.safe_load(document)["stages"]
    newest = git(places.root, "tag", "--list", f"{TAG_PREFIX}/*", "--sort=-creatordate").splitlines()[:1]
    if not newest:
        return dict.fromkeys(stages, "no night before it")
    try:
        changed = git(places.root, "diff", "--name-only", f"{newest[0]}^1", commit).splitlines()
    except DataError:
        return dict.fromkeys(stages, f"{newest[0]} cannot be compared with")
    before, after = (
        yaml.safe_load(git(places.root, "show", f"{name}:params.yaml")) for name in (f"{newest[0]}^1", commit)
    )
    sections = {name for name in after if before.get(name) != after[name]} | {key.split(".")[0] for key in settings}
    return stale_stages(stages, [*changed, "logs"], sections & set(after))
