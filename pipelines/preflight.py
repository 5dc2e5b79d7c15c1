"""What a runner needs before a pipeline is sent to it, and one line about each thing that is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apache_beam.options import pipeline_options as beam_options

from features.errors import DataError
from features.storage import Remote, is_url
from pipelines.config import LOCAL, PipelinesConfig

DATAFLOW = "DataflowRunner"
# Runners that talk to a job service; Flink's and Spark's start one, which is a Java program.
_JAVA_RUNNERS = ("FlinkRunner", "SparkRunner")
_PORTABLE_RUNNERS = ("PortableRunner", *_JAVA_RUNNERS)
_SECONDS_TO_CONNECT = 3.0
_NETWORK_FILESYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "gpfs", "beegfs", "fuse.glusterfs")
_HERE = ("localhost", "127.0.0.1", "[local]", "[auto]", "[collection]")


def check_runner(config: PipelinesConfig) -> None:
    """Looks for what the runner of the settings needs, without starting anything.

    Raises:
        DataError: one line for each thing that is missing.
    """
    problems = list(missing(config, beam_options.PipelineOptions(list(config.options))))
    if problems:
        raise DataError("\n".join(problems))


def missing(config: PipelinesConfig, options: beam_options.PipelineOptions) -> Iterator[str]:
    """A line for each thing that is missing."""
    if config.runner != LOCAL:
        yield from _spill(config.spill)
    if config.runner == DATAFLOW and not _installed("google.cloud.storage"):
        yield f"pipelines.runner: {DATAFLOW} needs Google's libraries: pip install 'apache-beam[gcp]'"
    elsewhere = _is_elsewhere(config.runner, options)
    if config.runner in _PORTABLE_RUNNERS:
        portable = options.view_as(beam_options.PortableOptions)
        yield from _job_service(config.runner, options)
        yield from _environment(portable.environment_type, portable.environment_config, elsewhere=elsewhere)
    if elsewhere:
        yield from _shared(config)
        yield from _code(options)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _job_service(runner: str, options: beam_options.PipelineOptions) -> Iterator[str]:
    endpoint = options.view_as(beam_options.PortableOptions).job_endpoint
    if endpoint and endpoint != "embed":
        yield from _reachable(endpoint, "--job_endpoint", "start one with `python -m pipelines.job_service`")
    elif runner == "PortableRunner" and not endpoint:
        yield "pipelines.options: --job_endpoint=HOST:PORT is missing, the address of a job service"
    elif runner in _JAVA_RUNNERS and not endpoint:
        if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
            yield f"pipelines.runner: {runner} starts a Java job server, but there is no java on the PATH"
        for name in ("flink_job_server_jar", "spark_job_server_jar"):
            jar = options.get_all_options().get(name)
            if jar and not is_url(jar) and not Path(jar).is_file():
                yield f"pipelines.options: --{name}={jar}: no such file"


def _environment(kind: str | None, config: str | None, *, elsewhere: bool) -> Iterator[str]:
    """Where workers come from; what is on other machines cannot be looked at from this one."""
    kind = (kind or "DOCKER").upper()
    details: dict[str, Any]
    try:
        details = json.loads(config) if config is not None and config.startswith("{") else {"url": config}
    except json.JSONDecodeError as error:
        yield f"pipelines.options: --environment_config={config}: not valid JSON: {error}"
        return
    if kind == "DOCKER" and not elsewhere and not shutil.which("docker"):
        yield (
            "pipelines.options: no docker here to start workers in; give --environment_type=EXTERNAL and"
            " --environment_config=HOST:PORT of a worker pool (`python -m pipelines.workers`)"
        )
    elif kind == "EXTERNAL" and not details.get("url"):
        yield "pipelines.options: --environment_config=HOST:PORT is missing, the address of a worker pool"
    elif kind == "EXTERNAL" and not elsewhere:
        hint = "start a worker pool with `python -m pipelines.workers`"
        yield from _reachable(details["url"], "--environment_config", hint)
    elif kind == "PROCESS" and not elsewhere and not shutil.which(details.get("command") or ""):
        yield f"pipelines.options: --environment_config: no such command to start a worker: {details.get('command')}"


def _reachable(address: str, option: str, hint: str) -> Iterator[str]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        yield f"pipelines.options: {option}={address}: write HOST:PORT"
        return
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT).close()
    except OSError as error:
        yield f"pipelines.options: {option}={address}: nothing answers there ({error}); {hint}"


def _is_elsewhere(runner: str, options: beam_options.PipelineOptions) -> bool:
    """Whether the workers run on other machines than this one."""
    known = options.get_all_options()
    masters = (known.get("flink_master"), known.get("spark_master_url"))
    return runner == DATAFLOW or (
        runner in _JAVA_RUNNERS and any(master and not str(master).startswith((*_HERE, "local")) for master in masters)
    )


def _spill(spill: str | None) -> Iterator[str]:
    """A URL must be shared by processes, have a driver, and take a file."""
    if spill is None:
        return
    if not is_url(spill):
        yield f"pipelines.spill: {spill} is no URL; write file://PATH, or null when the workers share this disk"
        return
    if spill.startswith("memory:"):
        yield f"pipelines.spill: {spill}: no worker outside this process sees it; name a store that all of them reach"
        return
    probe, remote = f"probe-{secrets.token_hex(6)}", Remote(spill)
    try:
        remote.upload(Path(__file__), probe)
        remote.remove(probe)
    except DataError as error:
        yield f"pipelines.spill: {error}"


def _shared(config: PipelinesConfig) -> Iterator[str]:
    if config.runner == DATAFLOW and not (config.spill or "").startswith(("gs://", "gcs://")):
        yield "pipelines.spill: Dataflow's workers share no disk with this machine, give a gs:// URL"
    elif config.spill is None and (kind := filesystem_type(Path.cwd())) not in _NETWORK_FILESYSTEMS:
        yield (
            f"pipelines.spill: the workers of {config.runner} run elsewhere and this folder is on a disk of this"
            f" machine ({kind}); give a URL that all of them reach, or work on a disk that they all mount at the same"
            " place"
        )
    elif (config.spill or "").startswith(("file:", "local:")):
        yield f"pipelines.spill: {config.spill} is this machine's disk, which workers elsewhere do not see"


def filesystem_type(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the filesystem that holds a folder, as the kernel calls it."""
    found = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    holding = [(point, kind) for point, kind in found if folder.absolute().is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0]))[1]


def _code(options: beam_options.PipelineOptions) -> Iterator[str]:
    """Workers elsewhere need this project's packages."""
    setup = options.view_as(beam_options.SetupOptions)
    packages = list(setup.extra_packages or ())
    image = options.view_as(beam_options.WorkerOptions).sdk_container_image
    external = options.view_as(beam_options.PortableOptions).environment_type == "EXTERNAL"
    if not packages and not image and not external:
        yield (
            "pipelines.options: workers elsewhere have not this project's code: run `make wheel` and give"
            " --extra_package=dist/hstu2-0.1.0-py3-none-any.whl, or --sdk_container_image with it installed"
        )
    for package in packages:
        if not is_url(package) and not Path(package).is_file():
            yield f"pipelines.options: --extra_package={package}: no such file; run `make wheel`"
