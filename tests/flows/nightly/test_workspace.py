"""The worktree and its commits: nobody's files, index, branches or tags move."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.errors import DataError
from flows.nightly.workspace import git, prepare_workspace, record_commit, resolve

from .conftest import Repository


@pytest.fixture
def prepared(repository: Repository) -> Repository:
    prepare_workspace(repository.places, resolve(repository.root, "HEAD"))
    return repository


def state(root: Path) -> tuple[str, ...]:
    """Everything of a person's that git knows: head, branches, index, working tree."""
    return (
        git(root, "symbolic-ref", "HEAD"),
        git(root, "for-each-ref", "refs/heads"),
        git(root, "diff", "--cached"),
        git(root, "status", "--porcelain"),
        (root / "params.yaml").read_text(),
    )


def test_a_night_works_on_committed_code_beside_a_dirty_tree(repository: Repository):
    root = repository.root
    (root / "params.yaml").write_text("half an edit")
    (root / "new.py").write_text("x = 1\n")
    git(root, "add", "new.py")
    before = state(root)
    prepare_workspace(repository.places, resolve(root, "HEAD"))
    workspace = repository.places.workspace
    assert not (workspace / "new.py").exists()
    assert (workspace / "params.yaml").read_text() != "half an edit"
    (workspace / "dvc.lock").write_text("schema: '2.0'\n")
    record_commit(repository.places, resolve(root, "HEAD"), date="2024-02-29", message="Night")
    assert state(root) == before


def test_a_commit_holds_the_three_files_on_top_of_its_base(prepared: Repository):
    workspace, base = prepared.places.workspace, resolve(prepared.root, "HEAD")
    (workspace / "dvc.lock").write_text("a\n")
    (workspace / "logs.dvc").write_text("b\n")
    (workspace / "stages.py").write_text("not recorded\n")
    tag = record_commit(prepared.places, base, date="2024-02-29", message="Night\n\nWhy")
    assert tag == "retrain/2024-02-29"
    assert git(prepared.root, "rev-parse", f"{tag}^1") == base
    changed = git(prepared.root, "diff", "--name-only", base, tag).splitlines()
    assert changed == ["dvc.lock", "logs.dvc"]
    assert git(prepared.root, "log", "-1", "--format=%B", tag).startswith("Night\n\nWhy")


def test_the_same_content_has_the_same_tag_and_another_a_new_one(prepared: Repository):
    workspace, base = prepared.places.workspace, resolve(prepared.root, "HEAD")
    tags = []
    for text in ("a\n", "a\n", "b\n", "a\n"):
        (workspace / "dvc.lock").write_text(text)
        tags.append(record_commit(prepared.places, base, date="2024-02-29", message="Night"))
    assert tags == ["retrain/2024-02-29", "retrain/2024-02-29", "retrain/2024-02-29.2", "retrain/2024-02-29"]


def test_a_new_base_brings_its_code_and_keeps_what_stages_left(prepared: Repository):
    workspace, root = prepared.places.workspace, prepared.root
    (workspace / "dvc.lock").write_text("kept\n")
    (workspace / "data").mkdir()
    (workspace / "data" / "events").write_text("kept\n")
    (workspace / "params.yaml").write_text("edited by the night\n")
    (root / "stages.py").write_text("x = 2\n")
    git(root, "commit", "--quiet", "-am", "Change")
    prepare_workspace(prepared.places, resolve(root, "HEAD"))
    assert (workspace / "stages.py").read_text() == "x = 2\n"
    assert (workspace / "params.yaml").read_text() == (root / "params.yaml").read_text()
    assert (workspace / "dvc.lock").read_text() == (workspace / "data" / "events").read_text() == "kept\n"


def test_what_killed_processes_left_is_removed(prepared: Repository):
    workspace = prepared.places.workspace
    gitdir = Path(git(workspace, "rev-parse", "--absolute-git-dir"))
    (gitdir / "index.lock").touch()
    (workspace / ".dvc" / "tmp").mkdir(exist_ok=True)
    (workspace / ".dvc" / "tmp" / "rwlock").write_text('{"x": {"write": {"pid": 1, "cmd": "repro"}}}')
    prepare_workspace(prepared.places, resolve(prepared.root, "HEAD"))
    assert not (gitdir / "index.lock").exists()
    assert not (workspace / ".dvc" / "tmp" / "rwlock").exists()


def test_a_half_made_worktree_is_made_again(prepared: Repository):
    (prepared.places.workspace / ".git").unlink()
    prepare_workspace(prepared.places, resolve(prepared.root, "HEAD"))
    assert (prepared.places.workspace / "stages.py").is_file()


def test_the_worktree_has_the_repositorys_cache_and_remotes(prepared: Repository):
    local = (prepared.places.workspace / ".dvc" / "config.local").read_text()
    assert f"dir = {prepared.root / '.dvc' / 'cache'}" in local
    assert f"url = {prepared.root.parent / 'hstu2-remote'}" in local
    assert (prepared.places.workspace / ".dvc" / "config.local").stat().st_mode & 0o777 == 0o600


def test_an_unknown_base_is_named(repository: Repository):
    with pytest.raises(DataError, match="nobody: no such commit"):
        resolve(repository.root, "nobody")
