"""Kills the four data stages at random moments and looks at what is left: `python -m pipelines.bench.kill_loop`.

Two versions of the same logs take turns, so a killed run always meets the outputs of another version. What a kill
leaves must be absent, the whole of one version, or refused by validate; the run after it must give the same bytes as
an undisturbed one and leave nothing else behind.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from features.config import Closed
from features.dataset import open_dataset
from features.errors import DataError
from features.files import write_json
from pipelines.engine import log_to_stderr
from pipelines.ingest import ingest
from pipelines.sources.synthetic import SyntheticSettings, write_kuairand_logs
from pipelines.streams import build_streams
from pipelines.validate import Inputs, validate
from pipelines.vocab import build_vocabularies

_LOG = logging.getLogger(__name__)
_MODULE = "pipelines.bench.kill_loop"
STAGES = ("ingest", "vocab", "streams", "validate")
OUTPUTS = ("events", "quarantine", "vocab", "streams")
VERSIONS = ("first", "second")
_TEMPORARY = (".tmp-", ".roll-call-")


class Kill(Closed):
    """One kill.

    Attributes:
        stage: which stage ran, `seconds` after it had begun.
        leftovers: temporary files and folders that the killed run could not remove.
        streams: what is at data/streams: missing, or one of VERSIONS.
        verdict: what validate said about it: refused or passed.
    """

    number: int
    building: str
    stage: str
    seconds: float
    leftovers: int
    streams: str
    verdict: str


@dataclass(frozen=True)
class Workspace:
    """Folders of a run."""

    root: Path

    def params(self, version: str) -> Path:
        """The settings that read a version of the logs."""
        return self.root / f"{version}.yaml"

    @property
    def inputs(self) -> Inputs:
        """What validate reads."""
        return Inputs(self.root / "events", self.root / "vocab", self.root / "streams")

    def run(self, version: str, *, begin: Callable[[str], object]) -> None:
        """All stages; `begin` is told each one's name before it begins."""
        params, inputs = self.params(version), self.inputs
        steps: tuple[Any, ...] = (
            lambda: ingest(params, inputs.events, self.root / "quarantine"),
            lambda: build_vocabularies(params, inputs.events, inputs.vocab),
            lambda: build_streams(params, inputs.events, inputs.vocab, inputs.streams),
            lambda: validate(params, inputs, self.root / "validation.json"),
        )
        for stage, step in zip(STAGES, steps, strict=True):
            begin(stage)
            step()

    def leftovers(self) -> list[Path]:
        """Temporary files and folders."""
        return [path for path in self.root.rglob("*") if path.name.startswith(_TEMPORARY)]

    def digest(self) -> dict[str, str]:
        """One digest per output, over the names and bytes of its files."""
        return {name: _digest(self.root / name) for name in OUTPUTS}


def make_workspace(root: Path, settings: SyntheticSettings, *, template: Path, num_shards: int) -> Workspace:
    """Writes two versions of the logs, the second with corrected rows and just as many, and their settings."""
    logs = root / "raw-first"
    write_kuairand_logs(logs, settings)
    shutil.copytree(logs, root / "raw-second")
    path = sorted((root / "raw-second").glob("**/log_standard*.csv"))[-1]
    path.write_text(_corrected(path.read_text()))
    document = yaml.safe_load(template.read_text())
    for version in VERSIONS:
        document["data"]["path"] = str(root / f"raw-{version}")
        document["pipelines"] |= {"num_shards": num_shards, "rows_per_unit": max(1, settings.num_events // 8)}
        document["pipelines"]["store"] = str(root / "store")
        (root / f"{version}.yaml").write_text(yaml.safe_dump(document))
    return Workspace(root)


def _corrected(text: str) -> str:
    """A log in which every tenth row has the other is_like."""
    header, *rows = text.splitlines(keepends=True)
    column = header.split(",").index("is_like")
    for number in range(0, len(rows), 10):
        fields = rows[number].split(",")
        if len(fields) > column and fields[column] in ("0", "1"):
            fields[column] = str(1 - int(fields[column]))
            rows[number] = ",".join(fields)
    return "".join([header, *rows])


def _digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(directory)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Undisturbed:
    """What runs without a kill gave, by version, and how long each stage takes."""

    digests: dict[str, dict[str, str]]
    contents: dict[str, str]
    seconds: dict[str, float]


def run_undisturbed(workspace: Workspace) -> Undisturbed:
    """Runs both versions to their end, the first twice: what a run after another gives is what one alone gives."""
    digests: dict[str, dict[str, str]] = {}
    contents: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for version in ("first", "second", "first"):
        seconds = _timed_run(workspace, version)
        if digests.setdefault(version, workspace.digest()) != workspace.digest():
            raise RuntimeError(f"two undisturbed runs of the {version} logs differ")
        contents[version] = open_dataset(workspace.inputs.streams).manifest.content_checksum
    return Undisturbed(digests, contents, seconds)


def _timed_run(workspace: Workspace, version: str) -> dict[str, float]:
    """Runs to the end in this process; the seconds of each stage."""
    begun: list[tuple[str, float]] = []
    workspace.run(version, begin=lambda stage: begun.append((stage, time.monotonic())))
    ends = [*(moment for _, moment in begun[1:]), time.monotonic()]
    return {stage: end - start for (stage, start), end in zip(begun, ends, strict=True)}


def _started(workspace: Workspace, version: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", _MODULE, "--run", version, "--workspace", str(workspace.root)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


def kill_at(workspace: Workspace, version: str, stage: str, *, seconds: float) -> bool:
    """Kills a run so many seconds after a stage has begun; False when it was over before."""
    with _started(workspace, version) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == stage:
                break
        time.sleep(seconds)
        over = process.poll() is not None
        if not over:
            os.killpg(process.pid, signal.SIGKILL)
    return not over


def look(workspace: Workspace, undisturbed: Undisturbed) -> tuple[str, str]:
    """What is at data/streams, and what validate says about it.

    Raises:
        RuntimeError: something partial or mixed is there and was accepted.
    """
    if not workspace.inputs.streams.exists():
        return "missing", "passed" if _validates(workspace) else "refused"
    content = open_dataset(workspace.inputs.streams).manifest.content_checksum
    (version,) = (version for version, known in undisturbed.contents.items() if known == content)
    if not _validates(workspace):
        return version, "refused"
    whole = {name: found == undisturbed.digests[version][name] for name, found in workspace.digest().items()}
    if not (whole["events"] and whole["vocab"] and whole["streams"]):
        raise RuntimeError(f"validate passed a mixture; which output is of the {version} logs: {whole}")
    return version, "passed"


def _validates(workspace: Workspace) -> bool:
    """Either version's settings do: where the logs lie is not part of a dataset."""
    try:
        validate(workspace.params(VERSIONS[0]), workspace.inputs, workspace.root / "look" / "validation.json")
    except DataError:
        return False
    return True


def kill_loop(
    workspace: Workspace, undisturbed: Undisturbed, num_kills: int, *, seed: int, stages: tuple[str, ...] = STAGES
) -> list[Kill]:
    """Kills runs in `stages` in turn until there were so many kills, and runs to the end after each.

    Raises:
        RuntimeError: a kill left something that was accepted though it should not, or the run after it gave other
            bytes or left temporary files behind.
    """
    rng = random.Random(seed)
    kills: list[Kill] = []
    while len(kills) < num_kills:
        number = len(kills)
        version, stage = VERSIONS[(number + 1) % 2], stages[(number + number // len(stages)) % len(stages)]
        seconds = rng.uniform(0, undisturbed.seconds[stage])
        if not kill_at(workspace, version, stage, seconds=seconds):
            continue
        leftovers = len(workspace.leftovers())
        streams, verdict = look(workspace, undisturbed)
        kills.append(
            Kill(
                number=number + 1,
                building=version,
                stage=stage,
                seconds=round(seconds, 3),
                leftovers=leftovers,
                streams=streams,
                verdict=verdict,
            )
        )
        _LOG.info("%s", kill_line(kills[-1]))
        _timed_run(workspace, version)
        if workspace.digest() != undisturbed.digests[version]:
            raise RuntimeError(f"the run after kill {number + 1} gave other bytes")
        if workspace.leftovers():
            raise RuntimeError(f"the run after kill {number + 1} left {workspace.leftovers()[0]} behind")
    return kills


def kill_line(kill: Kill) -> str:
    """One line of the log."""
    return (
        f"kill {kill.number}: {kill.stage} after {kill.seconds:.2f} s, building the {kill.building} logs;"
        f" {kill.leftovers} temporary left; streams: {kill.streams}; validate: {kill.verdict}"
    )


def main() -> None:
    """Command line of the loop."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.bench.kill_loop", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--num-events", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--out", type=Path, default=Path("bench/kill-loop.json"))
    parser.add_argument("--workspace", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    log_to_stderr()
    if args.run:
        Workspace(args.workspace).run(args.run, begin=lambda stage: print(stage, flush=True))
        return
    for name in ("features", "pipelines.vocab", "pipelines.streams", "pipelines.ingest", "pipelines.validate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="kill-loop-") as folder:
        settings = SyntheticSettings(num_events=args.num_events, seed=args.seed, dirty=True)
        workspace = make_workspace(Path(folder), settings, template=args.params, num_shards=4)
        kills = kill_loop(workspace, run_undisturbed(workspace), args.kills, seed=args.seed)
    write_json(args.out, {"num_events": args.num_events, "kills": [kill.model_dump() for kill in kills]})
    _LOG.info("%d kills: every run after one gave the bytes of an undisturbed run", len(kills))


if __name__ == "__main__":
    main()
