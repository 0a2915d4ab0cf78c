"""Files are whole or absent; the root is found from anywhere inside the project."""

import re

import pytest
from safetensors import SafetensorError

from biox.files import project_root, read_json, write_json, written_whole


def test_failure_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "scores.json"
    write_json(path, {"a": 1})
    reasons = {
        OSError(28, "No space left on device"): "[Errno 28] No space left on device",
        SafetensorError("I/O error: No space left"): "I/O error: No space left",
    }
    for error, reason in reasons.items():
        want = re.escape(f"{path}: could not be written ({reason})")
        with pytest.raises(OSError, match=f"^{want}$"), written_whole(path) as part:
            part.write_text("{")
            raise error
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_a_path_that_cannot_be_is_named_without_the_temporary_name(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.json", tmp_path / "folder"):
        with pytest.raises(OSError, match="could not be written") as error:
            write_json(path, {})
        assert str(error.value).startswith(f"{path}: ") and ".part" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_an_interrupt_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "x" / "new.json") as part:
        part.write_text("{")
        raise KeyboardInterrupt
    assert list((tmp_path / "x").iterdir()) == []


def test_broken_json_is_named(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"scores.json: expected JSON"):
        read_json(path)
    with pytest.raises(FileNotFoundError, match=r"none.json: expected a JSON file"):
        read_json(tmp_path / "none.json")


def test_root_is_found_from_below_and_missed_elsewhere(tmp_path):
    (tmp_path / "params.yaml").touch()
    (tmp_path / "dvc.yaml").touch()
    below = tmp_path / "notebooks" / "executed"
    below.mkdir(parents=True)
    assert project_root(below) == project_root(tmp_path) == tmp_path.resolve()
    with pytest.raises(FileNotFoundError, match="params.yaml and dvc.yaml"):
        project_root(tmp_path.parent)
