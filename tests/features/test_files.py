from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from features.errors import DataError
from features.files import atomic_directory, atomic_file, read_json, write_json, write_scratch_json

_KILLED_WRITER = """
import sys, time
from pathlib import Path
from features.files import {function}
with {function}(Path(sys.argv[1])) as temporary:
    path = temporary / "half" if temporary.is_dir() else temporary
    path.write_text("half written")
    print("writing", flush=True)
    time.sleep(60)
"""


def kill_while_writing(function: str, target: Path) -> None:
    command = [sys.executable, "-c", _KILLED_WRITER.format(function=function), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_directory_replaces_the_old_one_as_a_whole(tmp_path):
    target = tmp_path / "events"
    with atomic_directory(target) as temporary:
        (temporary / "old").write_text("1")
        assert not target.exists()
    with atomic_directory(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "new").write_text("2")
        assert names(target) == {"old"}
    assert names(target) == {"sub"}
    assert (target / "sub" / "new").read_text() == "2"
    assert names(tmp_path) == {"events", ".events.lock"}


def test_directory_stays_as_it_was_after_an_error(tmp_path):
    target = tmp_path / "events"
    with atomic_directory(target) as temporary:
        (temporary / "good").write_text("1")
    with pytest.raises(FileNotFoundError), atomic_directory(target) as temporary:
        (temporary / "missing" / "bad").write_text("2")
    assert names(target) == {"good"}
    assert names(tmp_path) == {"events", ".events.lock"}


def test_killed_directory_writer_leaves_no_target_and_the_next_one_cleans_up(tmp_path):
    target = tmp_path / "streams"
    kill_while_writing("atomic_directory", target)
    assert not target.exists()
    assert any(name.startswith(".tmp-streams-") for name in names(tmp_path))
    with atomic_directory(target) as temporary:
        assert names(temporary) == set()
        (temporary / "whole").write_text("1")
    assert names(target) == {"whole"}
    assert names(tmp_path) == {"streams", ".streams.lock"}


def test_second_writer_is_refused_and_the_first_one_unharmed(tmp_path):
    target = tmp_path / "streams"
    with atomic_directory(target) as temporary:
        (temporary / "a").write_text("1")
        with pytest.raises(DataError, match=rf"streams: process {os.getpid()} is writing it"), atomic_directory(target):
            pass
    assert names(target) == {"a"}


def test_targets_with_a_common_prefix_do_not_disturb_each_other(tmp_path):
    with atomic_directory(tmp_path / "streams-old") as first:
        (first / "a").write_text("1")
        with atomic_directory(tmp_path / "streams") as second:
            (second / "b").write_text("2")
    assert names(tmp_path / "streams-old") == {"a"}
    assert names(tmp_path / "streams") == {"b"}


def test_directory_refuses_to_replace_a_file(tmp_path):
    (tmp_path / "streams").write_text("precious")
    with pytest.raises(DataError, match="is a file"), atomic_directory(tmp_path / "streams"):
        pass
    assert (tmp_path / "streams").read_text() == "precious"


def test_file_stays_as_it_was_after_an_error(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError), atomic_file(target) as temporary:
        temporary.write_text("new \ud800", encoding="utf-8")
    assert target.read_text() == "old"
    assert names(tmp_path) == {"a.json"}


def test_killed_file_writer_leaves_no_target_and_the_next_one_cleans_up(tmp_path):
    target = tmp_path / "model.bin"
    kill_while_writing("atomic_file", target)
    assert not target.exists()
    assert len(names(tmp_path)) == 1
    with atomic_file(target) as temporary:
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert names(tmp_path) == {"model.bin"}


def test_two_live_file_writers_do_not_mix(tmp_path):
    target = tmp_path / "a"
    with atomic_file(target) as first:
        first.write_text("first")
        thread = threading.Thread(target=lambda: write_json(target, "second"))
        thread.start()
        thread.join()
        assert read_json(target) == "second"
    assert target.read_text() == "first"


def test_equal_objects_give_equal_json_bytes(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": [1.5, None], "ü": True})
    write_json(tmp_path / "b", {"ü": True, "a": [1.5, None], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_text("utf-8").startswith('{\n "a": [\n  1.5')
    assert (tmp_path / "a").read_bytes().endswith(b"}\n")
    assert read_json(tmp_path / "a") == {"b": 1, "a": [1.5, None], "ü": True}


def test_scratch_json_has_the_same_bytes_and_leaves_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1.5, None]})
    write_scratch_json(tmp_path / "b.json", {"b": [1.5, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", float("nan"))
    assert names(tmp_path) == set()


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "stats.json").write_bytes(content)
    with pytest.raises(DataError, match=r"stats\.json: not valid JSON"):
        read_json(tmp_path / "stats.json")


def test_missing_json_is_named(tmp_path):
    with pytest.raises(DataError, match=r"stats\.json: no such file"):
        read_json(tmp_path / "stats.json")
