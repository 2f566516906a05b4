import json
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from dcdt.utils.files import atomic_write, read_json, temporary_folder, write_json, write_text
from dcdt.utils.lock import lock_path


def test_a_file_is_written_with_its_folders(tmp_path):
    write_text(tmp_path / "a" / "b" / "note.txt", "é\n")
    assert (tmp_path / "a" / "b" / "note.txt").read_bytes() == "é\n".encode()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside_the_block_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_reader_sees_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("make", "write"), [("mkstemp", atomic_write), ("mkdtemp", temporary_folder)])
def test_a_writer_waits_while_another_looks_whether_its_new_file_was_abandoned(tmp_path, monkeypatch, make, write):
    original, locks = getattr(tempfile, make), []

    def make_and_look(**options):
        made = original(**options)
        locks.append(lock_path(Path(made if make == "mkdtemp" else made[1]), None))
        threading.Timer(0.1, os.close, locks).start()
        return made

    monkeypatch.setattr(tempfile, make, make_and_look)
    with write(tmp_path / "new") as temporary, pytest.raises(BlockingIOError):
        lock_path(temporary, None)
    assert len(locks) == 1


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


def test_what_json_lacks_becomes_null(tmp_path):
    value = {
        "nan": float("nan"),
        "list": [float("inf"), (1, np.float64("nan"))],
        "deep": {"x": float("-inf")},
        "n": 0.5,
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"nan": None, "list": [None, [1, None]], "deep": {"x": None}, "n": 0.5}
    assert text.endswith("}\n")


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "\xff"])
def test_what_cannot_be_read_is_an_empty_object(tmp_path, text):
    if text is not None:
        (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    assert read_json(tmp_path / "a.json") == {}
    write_json(tmp_path / "a.json", {"n": 1})
    assert read_json(tmp_path / "a.json") == {"n": 1}


def test_numbers_survive_json_exactly(tmp_path):
    value = {"third": 1 / 3, "text": "特征值", "seed": 0, "none": None, "yes": True}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == value
    assert "特征值" in (tmp_path / "a.json").read_text()


def test_what_cannot_be_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert os.listdir(tmp_path) == []
