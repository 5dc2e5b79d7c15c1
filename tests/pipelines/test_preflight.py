"""What is missing for a runner is said in one line each, before anything is started."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from features.errors import DataError
from pipelines.config import PipelinesConfig
from pipelines.preflight import check_runner, filesystem_type
from pipelines.roll_call import roll_call

FLINK = ("--flink_master=flink.example:8081",)


def config_of(runner: str, *options: str, spill: str | None = None) -> PipelinesConfig:
    return PipelinesConfig(
        runner=runner, options=options, num_workers=2, num_shards=1, rows_per_unit=1, spill=spill, store=None
    )


def problems_of(runner: str, *options: str, spill: str | None = None) -> list[str]:
    with pytest.raises(DataError) as caught:
        check_runner(config_of(runner, *options, spill=spill))
    return str(caught.value).split("\n")


@pytest.fixture
def address() -> Iterator[str]:
    """Something that answers."""
    with socket.create_server(("localhost", 0)) as server:
        yield f"localhost:{server.getsockname()[1]}"


@pytest.fixture
def dead_address() -> str:
    with socket.create_server(("localhost", 0)) as server:
        return f"localhost:{server.getsockname()[1]}"


def external(address: str) -> tuple[str, str]:
    return "--environment_type=EXTERNAL", f"--environment_config={address}"


def test_the_local_runner_needs_nothing() -> None:
    check_runner(config_of("local", spill="memory://spill"))


def test_a_whole_cluster_is_accepted(address: str, tmp_path: Path) -> None:
    spill = f"file://{tmp_path}/spill"
    check_runner(config_of("PortableRunner", f"--job_endpoint={address}", *external(address), spill=spill))


def test_a_portable_runner_needs_a_job_service(address: str) -> None:
    assert problems_of("PortableRunner", *external(address)) == [
        "pipelines.options: --job_endpoint=HOST:PORT is missing, the address of a job service"
    ]


def test_services_that_do_not_answer_are_named(dead_address: str) -> None:
    jobs, pool = problems_of("PortableRunner", f"--job_endpoint={dead_address}", *external(dead_address))
    assert jobs.startswith(f"pipelines.options: --job_endpoint={dead_address}: nothing answers there")
    assert jobs.endswith("start one with `python -m pipelines.job_service`")
    assert pool.startswith(f"pipelines.options: --environment_config={dead_address}: nothing answers there")


@pytest.mark.parametrize("wrong", ["localhost", "localhost:", ":50", "localhost:http"])
def test_an_address_is_host_and_port(wrong: str) -> None:
    assert problems_of("PortableRunner", "--job_endpoint=embed", *external(wrong)) == [
        f"pipelines.options: --environment_config={wrong}: write HOST:PORT"
    ]


def test_a_pool_without_an_address_is_said() -> None:
    (problem,) = problems_of("PortableRunner", "--job_endpoint=embed", "--environment_type=EXTERNAL")
    assert problem.startswith("pipelines.options: --environment_config=HOST:PORT is missing")


def test_a_command_that_starts_workers_must_be_there() -> None:
    options = ("--job_endpoint=embed", "--environment_type=PROCESS")
    assert problems_of("PortableRunner", *options, '--environment_config={"command": "/no/such"}') == [
        "pipelines.options: --environment_config: no such command to start a worker: /no/such"
    ]
    (problem,) = problems_of("PortableRunner", *options, "--environment_config={command: x}")
    assert problem.startswith("pipelines.options: --environment_config={command: x}: not valid JSON")


def test_a_pool_on_machines_elsewhere_is_not_looked_for_here(
    monkeypatch: pytest.MonkeyPatch, dead_address: str
) -> None:
    monkeypatch.setenv("JAVA_HOME", "/opt/java")
    monkeypatch.setattr("pipelines.preflight.filesystem_type", lambda folder: "nfs4")
    check_runner(config_of("FlinkRunner", *FLINK, *external(dead_address)))
    check_runner(config_of("SparkRunner", "--spark_master_url=spark://spark.example:7077", *external(dead_address)))


def test_no_java_and_no_docker_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    java, docker = problems_of("FlinkRunner", "--flink_job_server_jar=https://repo.example/server.jar")
    assert java == "pipelines.runner: FlinkRunner starts a Java job server, but there is no java on the PATH"
    assert docker.startswith("pipelines.options: no docker here to start workers in; give --environment_type=EXTERNAL")


def test_a_missing_job_server_jar_is_said(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("JAVA_HOME", "/opt/java")
    assert problems_of("FlinkRunner", "--flink_job_server_jar=/nowhere/server.jar", *external(address)) == [
        "pipelines.options: --flink_job_server_jar=/nowhere/server.jar: no such file"
    ]


def test_workers_elsewhere_need_a_shared_spill_and_the_code(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("JAVA_HOME", "/opt/java")
    process = ("--environment_type=PROCESS", '--environment_config={"command": "/bin/sh"}')
    spill, code = problems_of("FlinkRunner", *FLINK, *process)
    assert spill.startswith("pipelines.spill: the workers of FlinkRunner run elsewhere and this folder is on a disk of")
    assert code.startswith("pipelines.options: workers elsewhere have not this project's code: run `make wheel`")
    monkeypatch.setattr("pipelines.preflight.filesystem_type", lambda folder: "nfs4")
    assert problems_of("FlinkRunner", *FLINK, *process, "--extra_package=no.whl") == [
        "pipelines.options: --extra_package=no.whl: no such file; run `make wheel`"
    ]


def test_the_filesystem_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("overlay / overlay rw 0 0\nserver:/x /mnt/logs nfs4 rw 0 0\nproc /proc proc rw 0 0\n")
    assert filesystem_type(Path("/mnt/logs/kuairand"), mounts) == "nfs4"
    assert filesystem_type(Path("/mnt/log"), mounts) == "overlay"


def test_a_spill_that_workers_do_not_see_is_refused(address: str, tmp_path: Path) -> None:
    options = ("--job_endpoint=embed", *external(address))
    assert problems_of("PortableRunner", *options, spill="memory://spill")[0].startswith(
        "pipelines.spill: memory://spill: no worker outside this process sees it"
    )
    assert problems_of("PortableRunner", *options, spill="spill")[0].startswith("pipelines.spill: spill is no URL")
    (tmp_path / "file").touch()
    (problem,) = problems_of("PortableRunner", *options, spill=f"file://{tmp_path}/file")
    assert problem.startswith(f"pipelines.spill: file://{tmp_path}/file: cannot write probe-")


def test_dataflow_needs_its_libraries_a_bucket_and_the_code() -> None:
    libraries, bucket, code = problems_of("DataflowRunner")
    assert libraries.endswith("needs Google's libraries: pip install 'apache-beam[gcp]'")
    assert bucket == "pipelines.spill: Dataflow's workers share no disk with this machine, give a gs:// URL"
    assert code.startswith("pipelines.options: workers elsewhere have not this project's code")


@pytest.mark.parametrize("spill", [None, "memory://roll-call/spill"])
def test_the_workers_of_the_local_runner_answer(tmp_path: Path, spill: str | None) -> None:
    (answer,) = roll_call(config_of("local", spill=spill), tmp_path / "data")
    assert answer.process > 0
    assert list((tmp_path / "data").iterdir()) == []
