"""One data date, step by step. Every step may be cut off at any point and done again; Prefect only wraps them."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from features.config import DataConfig
from features.errors import DataError
from features.files import atomic_file, read_json
from features.profile import Profile
from flows.models import ModelStore, Promotion, StoredModel
from flows.nightly import gate
from flows.nightly.config import RetrainConfig
from flows.nightly.dates import DAY, day_end
from flows.nightly.dvc import Commands
from flows.nightly.logs import freeze, has_settled, list_logs, wait_for_logs
from flows.nightly.plan import look_at_window, window_settings
from flows.nightly.progress import Progress
from flows.nightly.record import DataAccount, GateReport, NightRecord, Outcome, Records
from flows.nightly.workspace import LOGS, NightlyPlaces, git, record_commit
from flows.settings import apply_changes, check_params
from flows.stage import Reproduction, Status, reproducing, stage_names
from pipelines.profiles import keep_profile

PREDICTIONS = "predictions.arrow"


@dataclass(frozen=True)
class Night:
    """A data date on a base commit.

    Attributes:
        places: of the repository.
        date: the data date.
        base: commit whose code and settings it runs; the worktree is there already.
        config, data: its settings, as committed.
        commands: what runs in the worktree.
        progress: what was found so far.
    """

    places: NightlyPlaces
    date: datetime.date
    base: str
    config: RetrainConfig
    data: DataConfig
    commands: Commands
    progress: Progress

    @property
    def workspace(self) -> Path:
        """The worktree."""
        return self.places.workspace

    @property
    def store(self) -> ModelStore:
        """The store of models."""
        return ModelStore(self.places.models)

    def stages(self) -> tuple[str, ...]:
        """The stages to run."""
        return stage_names(self.workspace)

    def wait(self, patience_seconds: float) -> None:
        """Waits until the date's logs have arrived and are not written any more.

        Args:
            patience_seconds: wait so long from now even when the deadline has passed.

        Raises:
            DataError: they have not come by the deadline.
        """
        folder, pattern = logs_folder(self.places, self.config), self.config.day_pattern

        def look() -> bool:
            files = list_logs(folder, pattern)
            return has_settled(files, self.date, now=time.time(), settle_seconds=self.config.settle_seconds)

        deadline = day_end(self.date, self.data.timezone).timestamp() + 60 * self.config.deadline_minutes
        arrived = wait_for_logs(
            look,
            deadline=max(deadline, time.time() + patience_seconds),
            poll_seconds=self.config.poll_seconds,
            on_wait=lambda left: self.commands.say(
                f"the logs of {self.date} are not there; waiting {left:,.0f} s more"
            ),
        )
        if not arrived:
            name = self.date.strftime(pattern)
            raise DataError(
                f"{folder}: no logs of {self.date} ({name}) by the deadline; run the date when they are there"
            )

    def freeze(self) -> None:
        """Copies the window's logs into the worktree and has DVC track them."""
        files = list_logs(logs_folder(self.places, self.config), self.config.day_pattern)
        records = self.progress.records.all()
        window = look_at_window(files, self.date, self.config, places=self.places, records=records)
        self.progress.window = window
        account = window.account
        for what, days in (("left out, their own night failed", account.left_out), ("without logs", account.absent)):
            if days:
                self.commands.say(f"days {what}: {', '.join(map(str, days))}")
        freeze(window.files, window.snapshot, self.workspace / LOGS)
        self.commands.track(LOGS)

    def configure(self) -> None:
        """Writes the worktree's params.yaml: the committed one with the night's edits.

        Raises:
            DataError: the result is not valid.
        """
        assert self.progress.window is not None
        path = self.workspace / "params.yaml"
        text = git(self.workspace, "show", f"{self.base}:params.yaml") + "\n"
        settings = window_settings(
            self.date, self.config, self.progress.window, champion=self.champion(), baseline=self.baseline()
        )
        if self.progress.unfit is not None:
            settings["train.warm_start"] = None
        self.progress.start = settings["train.warm_start"] or "fresh weights"
        text = apply_changes(text, settings, path)
        check_params(text, path)
        with atomic_file(path) as temporary:
            temporary.write_text(text)

    def champion(self) -> Promotion | None:
        """The champion that this date is measured against: none that this very date has made.

        A night that was killed just after its promotion finds itself on the throne, and is measured as before.
        """
        reign = [promotion for promotion in self.store.reign() if promotion.date != self.date]
        current = self.store.champion()
        return current if current is None or current.date != self.date else next(reversed(reign), None)

    def baseline(self) -> str | None:
        """Name of the profile of the newest night before this one that passed `validate`."""
        records = self.progress.records.all()
        kept = [record.profile for day, record in records.items() if day < self.date and record.profile is not None]
        return kept[-1] if kept else None

    def reproducing(self) -> AbstractContextManager[Reproduction]:
        """DVC, which brings all stages up to date in the worktree; it ends with the block."""
        commands = self.commands
        return reproducing(self.stages(), self.workspace, timeout_seconds=commands.timeout_seconds, held=commands.held)

    def stage(self, name: str, reproduction: Reproduction) -> str:
        """Waits for a stage; returns how it ended.

        Raises:
            DataError: it failed; its own words.
        """
        outcome = reproduction.finish(name, self.commands.say)
        if outcome.status is Status.FAILED:
            raise DataError(outcome.error)
        path = self.workspace / "data" / "profile.json"
        if name == "validate" and path.is_file():
            profile = Profile.model_validate(read_json(path))
            self.progress.profile = keep_profile(profile, self.places.folder / "profiles").name
        return outcome.status.value

    def begin_afresh(self, step: str, reason: str) -> bool:
        """Whether the stages are to be run once more, from scratch: training refused the champion's weights, and the
        settings allow to do without. Writes params.yaml anew then.

        Args:
            step: that failed.
            reason: of the failure, which begins with the setting that was refused.
        """
        refused = step == "train" and reason.startswith("train.warm_start: ")
        if not refused or self.config.warm_start != "possible" or self.progress.unfit is not None:
            return False
        self.progress.unfit = reason.splitlines()[0]
        self.commands.say(f"training from scratch: {self.progress.unfit}")
        self.configure()
        return True

    def judge(self) -> GateReport:
        """Stores the model, scores the window with it and the champion, and decides."""
        stored = self.store.add(self.workspace / "models" / "ranker", self.workspace / "data" / "vocab", self.date)
        self.progress.model = stored
        champion = self.champion()
        if champion is not None and champion.date > self.date:
            report = gate.not_judged(f"the champion is of a later date, {champion.date}", champion.model)
        elif champion is not None and champion.model == stored.model:
            report = gate.not_judged("it is the champion, byte for byte", champion.model)
        else:
            report = self._compare(stored, champion)
        self.progress.report = report
        return report

    def _compare(self, stored: StoredModel, champion: Promotion | None) -> GateReport:
        predictions = (self.places.folder / PREDICTIONS).absolute()
        models = {gate.CHALLENGER: stored.model} | ({} if champion is None else {gate.CHAMPION: champion.model})
        arguments = [
            f"--model={name}={os.path.relpath(self.store.path(model), self.workspace)}"
            for name, model in models.items()
        ]
        self.commands.python("-m", "model.predict", *arguments, "--out", str(predictions))
        return gate.judge(
            gate.Predictions.load(predictions),
            self.config.gate,
            champion=None if champion is None else champion.model,
            num_bytes=stored.num_bytes,
        )

    def commit(self) -> str:
        """Commits and tags the night's params.yaml, dvc.lock and logs.dvc."""
        report = self.progress.report
        assert report is not None
        word = "promote" if report.promote else "keep the champion"
        message = f"Retrain {self.date}: {word}\n\n{report.reason}\n"
        self.progress.tag = record_commit(self.places, self.base, date=str(self.date), message=message)
        return self.progress.tag

    def push(self) -> None:
        """Uploads everything that the commit names, and what earlier nights could not.

        Raises:
            DataError: the remote cannot be reached.
        """
        records = self.progress.records
        behind = [record for record in records.all().values() if record.tag is not None and not record.pushed]
        self.commands.push(all_tags=bool(behind))
        for record in behind:
            records.write(record.model_copy(update={"pushed": True}))
        self.progress.pushed = True

    def promote(self) -> None:
        """Moves the pointer, if the gate said so."""
        assert self.progress.report is not None
        assert self.progress.model is not None
        if self.progress.report.promote:
            self.store.promote(self.progress.model.model, self.date, by=f"gate: {self.progress.report.reason}")

    def prune(self) -> list[str]:
        """Removes models that were not promoted and are older than `keep_days`; returns their ids."""
        own = () if self.progress.model is None else (self.progress.model.model,)
        return self.store.prune(self.date - self.config.keep_days * DAY, own)

    def record(self, outcome: Outcome, reason: str, *, failed_step: str | None = None) -> NightRecord:
        """Writes the final word on the date."""
        progress, earlier = self.progress, self.progress.records.get(self.date)
        champion, window = self.store.champion(), progress.window
        record = NightRecord(
            date=self.date,
            outcome=outcome,
            reason=reason,
            step=failed_step,
            attempt=1 if earlier is None else earlier.attempt + 1,
            digest=None if window is None else window.snapshot.digest,
            day_digest=None if window is None else window.day_digest,
            started_at=progress.started_at,
            seconds=progress.seconds,
            data=None if window is None else self._account(window.account),
            model=None if progress.model is None else progress.model.model,
            champion=None if champion is None else champion.model,
            gate=progress.report,
            base=self.base,
            profile=progress.profile,
            tag=progress.tag,
            pushed=progress.pushed,
            start=progress.start,
            resumed=progress.resumed,
            earlier=() if earlier is None else (*earlier.earlier, f"{earlier.outcome}: {earlier.reason}"),
        )
        progress.records.save(record)
        return record

    def _account(self, account: DataAccount) -> DataAccount:
        """The account with ingest's figures, once it has run."""
        path = self.workspace / "data" / "events" / "stats.json"
        if "ingest" not in self.progress.seconds or not path.is_file():
            return account
        stats = read_json(path)
        return account.model_copy(update={"events": stats["kept"], "quarantined": stats["quarantined"]})


def logs_folder(places: NightlyPlaces, config: RetrainConfig) -> Path:
    """The landing folder; a relative path is the repository's."""
    return places.root / config.logs


def begin(
    places: NightlyPlaces, date: datetime.date, base: str, *, held: tuple[int, ...], say: Callable[[str], None]
) -> Night:
    """A night whose worktree is at its base commit.

    Raises:
        DataError: the committed settings are not valid.
    """
    params = places.workspace / "params.yaml"
    records = Records(places.folder)
    progress = Progress(records, date)
    dead = records.running()
    if dead is not None:
        progress.resumed = f"process {dead.pid} was killed in step {dead.step} of {dead.date}"
        say(f"{progress.resumed}; " + ("going on from there" if dead.date == date else "that date is still to be run"))
    config = RetrainConfig.load(params)
    commands = Commands(places.workspace, held, say, 60 * config.stage_timeout_minutes)
    return Night(places, date, base, config, DataConfig.load(params), commands, progress)
