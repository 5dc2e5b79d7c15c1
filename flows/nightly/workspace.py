"""The nightly workspace: a git worktree of its own, so that a night reads committed code and touches nobody's files.

Its commits are made with git's plumbing: a tree of the base commit with three files replaced, a commit on top of the
base, a tag. No branch moves, no index and no working tree but the worktree's own is written.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from features.config import Section
from features.errors import DataError
from features.files import atomic_file

SectionType = TypeVar("SectionType", bound=Section)
LOGS = "logs"
RECORDED = ("params.yaml", "dvc.lock", f"{LOGS}.dvc")
TAG_PREFIX = "retrain"
# Who speaks in a commit when the machine has no git identity.
_IDENTITY = {"GIT_AUTHOR_NAME": "hstu2 retrain", "GIT_AUTHOR_EMAIL": "retrain@localhost"}


@dataclass(frozen=True)
class NightlyPlaces:
    """Where a repository's nights live; all of it is git-ignored.

    Attributes:
        root: the repository.
    """

    root: Path

    @property
    def folder(self) -> Path:
        """Records, lock, page and worktree."""
        return self.root / "nightly"

    @property
    def workspace(self) -> Path:
        """The worktree."""
        return self.folder / "workspace"

    @property
    def models(self) -> Path:
        """The store of models."""
        return self.root / "models"

    @property
    def lock(self) -> Path:
        """The lock of the one retrain."""
        return self.folder / "retrain.lock"

    @property
    def page(self) -> Path:
        """The page of trends."""
        return self.folder / "index.html"


def git(directory: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Output of a git command, without the last line break.

    Raises:
        DataError: it failed; its own words.
    """
    done = subprocess.run(
        ["git", *arguments],
        cwd=directory,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DataError(f"git {' '.join(arguments[:2])} in {directory}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.rstrip("\n")


def resolve(root: Path, base: str) -> str:
    """The commit that a name stands for.

    Raises:
        DataError: no such commit, or no repository.
    """
    try:
        return git(root, "rev-parse", "--verify", f"{base}^{{commit}}")
    except DataError:
        raise DataError(f"{root}: {base}: no such commit, or no git repository (--base)") from None


def committed(root: Path, commit: str, section: type[SectionType]) -> SectionType:
    """A section of a commit's params.yaml.

    Raises:
        DataError: it is not valid.
    """
    with tempfile.TemporaryDirectory(prefix="hstu2-params-") as scratch:
        params = Path(scratch) / "params.yaml"
        params.write_text(git(root, "show", f"{commit}:params.yaml"))
        return section.load(params)


def prepare_workspace(places: NightlyPlaces, commit: str) -> None:
    """Brings the worktree to a commit, and makes it first if it is missing.

    Tracked files get the commit's content; what stages left (data, models, dvc.lock) stays, so that DVC skips what is
    up to date. DVC's cache is the repository's, and local remotes are where the repository has them.
    """
    workspace = places.workspace
    if not (workspace / ".git").is_file():
        shutil.rmtree(workspace, ignore_errors=True)
        git(places.root, "worktree", "prune")
        places.folder.mkdir(parents=True, exist_ok=True)
        git(places.root, "worktree", "add", "--quiet", "--detach", str(workspace), commit)
    kept = {name: (workspace / name).read_bytes() for name in RECORDED[1:] if (workspace / name).is_file()}
    _drop_dead_locks(places)
    git(workspace, "checkout", "--quiet", "--force", "--detach", commit)
    for name, content in kept.items():
        with atomic_file(workspace / name) as temporary:
            temporary.write_bytes(content)
    _share_dvc(places)


def _drop_dead_locks(places: NightlyPlaces) -> None:
    """Removes what killed processes left; the caller holds the retrain lock, so nobody living uses them."""
    gitdir = Path(git(places.workspace, "rev-parse", "--absolute-git-dir"))
    for path in (gitdir / "index.lock", gitdir / "HEAD.lock", places.workspace / ".dvc" / "tmp" / "rwlock"):
        path.unlink(missing_ok=True)


def _share_dvc(places: NightlyPlaces) -> None:
    """Writes the worktree's .dvc/config.local: the repository's own, its cache, its remotes as absolute paths."""
    import configparser

    local = configparser.ConfigParser(interpolation=None)
    shared = configparser.ConfigParser(interpolation=None)
    folder = places.root.absolute() / ".dvc"
    shared.read(folder / "config")
    local.read(folder / "config.local")
    for parser in (shared, local):
        for section in parser.sections():
            url = parser.get(section, "url", fallback=None)
            if url and "://" not in url and not os.path.isabs(url):
                if not local.has_section(section):
                    local.add_section(section)
                local.set(section, "url", os.path.normpath(folder / url))
    if not local.has_section("cache"):
        local.add_section("cache")
    if not local.has_option("cache", "dir"):
        own = shared.get("cache", "dir", fallback="cache")
        local.set("cache", "dir", os.path.normpath(folder / own))
    with atomic_file(places.workspace / ".dvc" / "config.local") as temporary, temporary.open("w") as file:
        local.write(file)
    (places.workspace / ".dvc" / "config.local").chmod(0o600)


def record_commit(places: NightlyPlaces, base: str, *, date: str, message: str) -> str:
    """Commits params.yaml, dvc.lock and logs.dvc of the worktree on top of the base commit and tags that.

    The tag is `retrain/<date>`, or `retrain/<date>.2` and so on when the date has another commit already. The same
    content has the same tag: a night that was killed after this step finds its own.

    Returns:
        The tag.
    """
    workspace = places.workspace
    with tempfile.TemporaryDirectory(prefix="hstu2-index-") as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        git(workspace, "read-tree", base, environment=index)
        for name in RECORDED:
            if (workspace / name).is_file():
                blob = git(workspace, "hash-object", "-w", "--", name)
                git(workspace, "update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", environment=index)
        tree = git(workspace, "write-tree", environment=index)
    number, tag = 1, f"{TAG_PREFIX}/{date}"
    while (known := _commit_of(workspace, tag)) is not None:
        if git(workspace, "rev-parse", f"{known}^{{tree}}", f"{known}^1").split() == [tree, base]:
            return tag
        number += 1
        tag = f"{TAG_PREFIX}/{date}.{number}"
    commit = git(workspace, "commit-tree", tree, "-p", base, "-m", message, environment=_identity(workspace))
    # All zeros: the tag must not be there yet, nobody's is moved.
    git(workspace, "update-ref", f"refs/tags/{tag}", commit, "0" * 40)
    return tag


def _commit_of(workspace: Path, tag: str) -> str | None:
    return git(workspace, "for-each-ref", "--format=%(objectname)", f"refs/tags/{tag}") or None


def _identity(workspace: Path) -> dict[str, str]:
    names = git(workspace, "config", "--default", "", "--get", "user.email")
    identity = {} if names else dict(_IDENTITY)
    return identity | {key.replace("AUTHOR", "COMMITTER"): value for key, value in identity.items()}
