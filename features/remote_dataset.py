"""Finished streams datasets at a URL: published with the manifest last, opened through a verified copy on the disk.

Shards are memory-mapped, so a dataset is read from local files only; the copy is kept and taken again while the
manifest is the same.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path, PurePosixPath

from features.dataset import open_dataset
from features.errors import DataError
from features.files import atomic_directory
from features.manifest import MANIFEST, Manifest, read_manifest
from features.storage import Remote

_LOG = logging.getLogger(__name__)
CACHE = Path("data/cache")


def publish_dataset(directory: Path, url: str) -> None:
    """Copies a finished dataset to a URL.

    What is there is no dataset until the new manifest, which comes last, is in place; files that it does not list are
    removed after it. The same dataset again costs a look at the manifest.

    Raises:
        DataError: the directory is not a whole dataset, or the URL does not take it.
    """
    remote, manifest = Remote(url), open_dataset(directory).manifest
    content = (directory / MANIFEST).read_bytes()
    if remote.exists(MANIFEST):
        if remote.read(MANIFEST) == content:
            _LOG.info("%s: already holds this dataset", url)
            return
        remote.remove(MANIFEST)
    names = [*_file_names(manifest), *(path.name for path in directory.glob("stats.json"))]
    for number, name in enumerate(names, 1):
        remote.upload(directory / name, name)
        _LOG.info("%s: %d of %d files", url, number, len(names))
    remote.upload(directory / MANIFEST, MANIFEST)
    for file in remote.files():
        if file.name not in (*names, MANIFEST):
            remote.remove(file.name)


def fetch_dataset(url: str, cache: Path = CACHE) -> Path:
    """Brings a dataset to the disk and returns where it is; a copy of the same manifest is taken as it is.

    Args:
        url: where `publish_dataset` put it.
        cache: folder of the copies, one per URL.

    Raises:
        DataError: there is no dataset, or a file of it is missing or is not the one that the manifest lists.
    """
    remote = Remote(url)
    if not remote.exists(MANIFEST):
        raise DataError(f"{remote.at(MANIFEST)}: missing, so {url} is not a finished dataset")
    content = remote.read(MANIFEST)
    target = cache / _cache_name(url)
    if (target / MANIFEST).is_file() and (target / MANIFEST).read_bytes() == content:
        return target
    with atomic_directory(target) as temporary:
        (temporary / MANIFEST).write_bytes(content)
        _download(remote, read_manifest(temporary), temporary)
        if remote.exists("stats.json"):
            remote.download("stats.json", temporary / "stats.json")
        if remote.read(MANIFEST) != content:
            raise DataError(f"{url}: another dataset was published there meanwhile; fetch it again")
    return target


def _file_names(manifest: Manifest) -> list[str]:
    return [f"{shard.name}/{name}" for shard in manifest.shards for name in sorted(shard.files)]


def _download(remote: Remote, manifest: Manifest, target: Path) -> None:
    names = _file_names(manifest)
    entries = {f"{shard.name}/{name}": entry for shard in manifest.shards for name, entry in shard.files.items()}
    for number, name in enumerate(names, 1):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{remote.at(MANIFEST)}: lists {name}, which is outside of the dataset")
        (target / name).parent.mkdir(exist_ok=True)
        remote.download(name, target / name, sha256=entries[name].sha256)
        _LOG.info("%s: %d of %d files", remote.url, number, len(names))


def _cache_name(url: str) -> str:
    """The last word of the URL, for people, and a digest of all of it."""
    url = url.rstrip("/")
    word = "".join(char if char.isalnum() or char in "-_." else "-" for char in url.rpartition("/")[2])
    return f"{word}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
