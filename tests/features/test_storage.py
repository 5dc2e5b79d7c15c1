"""Files and datasets by URL, on fsspec's filesystems in memory and on the disk."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import fsspec
import pytest

import features.remote_dataset
from features.dataset import open_dataset
from features.errors import DataError
from features.remote_dataset import fetch_dataset, publish_dataset
from features.storage import Remote, is_url


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}/data" if request.param == "memory" else f"file://{tmp_path}/store/data"


@pytest.mark.parametrize("location", ["s3://b/k", "gs://b", "memory://x", "file:///tmp", "dir::memory://x"])
def test_urls_are_told_from_paths(location: str) -> None:
    assert is_url(location)


@pytest.mark.parametrize("location", ["/a/b", "a/b", "a:b", "C:/x", "", "../s3:/b"])
def test_paths_are_no_urls(location: str) -> None:
    assert not is_url(location)
    assert not is_url(Path(location))


def test_files_are_listed_read_and_removed(url: str, tmp_path: Path) -> None:
    remote = Remote(url)
    assert remote.files() == []
    (tmp_path / "a").write_bytes(b"abc")
    remote.upload(tmp_path / "a", "x/b")
    remote.upload(tmp_path / "a", "a")
    assert [(file.name, file.size) for file in remote.files()] == [("a", 3), ("x/b", 3)]
    assert remote.read("x/b") == b"abc"
    with remote.open("a") as source:
        source.seek(1)
        assert source.read(1) == b"b"
    remote.remove("a")
    remote.remove("a")
    assert [file.name for file in remote.files()] == ["x/b"]
    assert not remote.exists("a")


def test_another_content_is_another_version(url: str, tmp_path: Path) -> None:
    versions = []
    for content in (b"abc", b"xyz"):
        (tmp_path / "a").write_bytes(content)
        Remote(url).upload(tmp_path / "a", "a")
        versions.append(Remote(url).files()[0].version)
    assert versions[0] != versions[1]
    assert all(versions)


def test_a_missing_file_is_named(url: str) -> None:
    with pytest.raises(DataError, match=f"{url}/a: no such file"):
        Remote(url).read("a")


def test_a_missing_driver_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        Remote("s3://bucket/raw").files()
    assert str(caught.value) == "s3://bucket/raw: no driver for s3:// is installed: pip install 'hstu2[s3]'"
    with pytest.raises(DataError, match=r"flonk://x: .*flonk"):
        Remote("flonk://x").files()


def test_a_dataset_comes_back_as_it_was(dataset: Path, url: str, tmp_path: Path) -> None:
    publish_dataset(dataset, url)
    copy = fetch_dataset(url, tmp_path / "cache")
    assert open_dataset(copy).manifest == open_dataset(dataset).manifest
    assert fetch_dataset(url, tmp_path / "cache") == copy
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [copy.name]


def test_what_was_published_before_is_replaced_whole(dataset: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    for name in ("manifest.json", "shard-00007-of-00008/users.arrow"):
        Remote(url).upload(tmp_path / "old", name)
    publish_dataset(dataset, url)
    listed = {file.name for file in Remote(url).files()}
    assert listed == {str(path.relative_to(dataset)) for path in dataset.rglob("*") if path.is_file()}


def test_a_copy_is_taken_anew_when_another_dataset_is_published(dataset: Path, url: str, tmp_path: Path) -> None:
    publish_dataset(dataset, url)
    copy = fetch_dataset(url, tmp_path / "cache")
    document = json.loads((dataset / "manifest.json").read_text())
    (dataset / "manifest.json").write_text(json.dumps(document | {"params_hash": "another"}))
    publish_dataset(dataset, url)
    assert fetch_dataset(url, tmp_path / "cache") == copy
    assert open_dataset(copy).manifest.params_hash == "another"


def test_what_is_no_dataset_is_refused(dataset: Path, url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{url}/manifest.json: missing, so {url} is not a finished dataset"):
        fetch_dataset(url, tmp_path / "cache")
    (dataset / "manifest.json").unlink()
    with pytest.raises(DataError, match="is not a finished dataset"):
        publish_dataset(dataset, url)
    assert Remote(url).files() == []


def test_a_damaged_or_missing_file_leaves_no_copy(dataset: Path, url: str, tmp_path: Path) -> None:
    publish_dataset(dataset, url)
    name = "shard-00001-of-00002/users.arrow"
    content = bytearray(Remote(url).read(name))
    content[len(content) // 2] ^= 1
    with fsspec.open(f"{url}/{name}", "wb") as sink:
        sink.write(bytes(content))
    with pytest.raises(DataError, match=f"{name}: sha256 differs"):
        fetch_dataset(url, tmp_path / "cache")
    Remote(url).remove(name)
    with pytest.raises(DataError, match=f"{name}: no such file"):
        fetch_dataset(url, tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_an_upload_that_breaks_off_publishes_nothing(
    dataset: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_dataset(dataset, url)
    (dataset / "manifest.json").write_text((dataset / "manifest.json").read_text() + "\n")
    upload = Remote.upload

    def break_off(self: Remote, path: Path, name: str) -> None:
        if name == "shard-00001-of-00002/users.arrow":
            raise DataError("no network")
        upload(self, path, name)

    monkeypatch.setattr(Remote, "upload", break_off)
    with pytest.raises(DataError, match="no network"):
        publish_dataset(dataset, url)
    with pytest.raises(DataError, match="is not a finished dataset"):
        fetch_dataset(url, tmp_path / "cache")


def test_a_manifest_that_points_elsewhere_is_refused(dataset: Path, url: str, tmp_path: Path) -> None:
    publish_dataset(dataset, url)
    text = Remote(url).read("manifest.json").decode().replace("shard-00001-of-00002", "../../outside")
    with fsspec.open(f"{url}/manifest.json", "wb") as sink:
        sink.write(text.encode())
    with pytest.raises(DataError, match="which is outside of the dataset"):
        fetch_dataset(url, tmp_path / "cache")


def test_a_dataset_published_meanwhile_is_noticed(
    dataset: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_dataset(dataset, url)
    download = features.remote_dataset._download

    def publish_another(remote: Remote, *arguments: object) -> None:
        download(remote, *arguments)  # type: ignore[arg-type]
        (dataset / "manifest.json").write_text((dataset / "manifest.json").read_text() + "\n")
        publish_dataset(dataset, url)

    monkeypatch.setattr(features.remote_dataset, "_download", publish_another)
    with pytest.raises(DataError, match="another dataset was published there meanwhile"):
        fetch_dataset(url, tmp_path / "cache")
