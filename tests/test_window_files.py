"""Files of windows are whole or absent, and say what they lack."""

import json
import resource
from dataclasses import replace

import numpy as np
import pytest
from raw_files import ECG, PPG, recording
from safetensors import safe_open
from safetensors.numpy import save_file

from biox.data.cutting import cut
from biox.data.windows import Windows

SPECS = {"ecg": replace(ECG, seconds=20.0), "ppg": replace(PPG, seconds=20.0)}


def windows():
    return cut(recording(), SPECS, 20.0, 5.0, ("low", "high"))


def equal(a, b):
    assert (a.rates, a.units, a.channels, a.classes, a.source) == (
        b.rates, b.units, b.channels, b.classes, b.source,
    )  # fmt: skip
    for name in ("labels", "subjects", "recordings", "starts"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert set(a.signals) == set(b.signals)
    for name in a.signals:
        np.testing.assert_array_equal(a.signals[name], b.signals[name])


def test_saved_windows_come_back_and_equal_windows_are_equal_bytes(tmp_path):
    want = windows()
    want.save(tmp_path / "a.safetensors")
    windows().save(tmp_path / "b.safetensors")
    equal(Windows.load(tmp_path / "a.safetensors"), want)
    assert list(Windows.load(tmp_path / "a.safetensors", ["ppg"]).signals) == ["ppg"]
    a, b = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "ab")
    assert a == b


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_cut_and_foreign_files_of_windows_are_named(keep, tmp_path):
    path = tmp_path / "a.safetensors"
    windows().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="a.safetensors: expected a whole file of windows"):
        Windows.load(path)
    with pytest.raises(FileNotFoundError, match="b.safetensors"):
        Windows.load(tmp_path / "b.safetensors")


def parts_of(path):
    with safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["windows"]), arrays


@pytest.mark.parametrize("gone", [
    "rates", "units", "channels", "subjects", "recordings", "classes", "source",
])  # fmt: skip
def test_windows_whose_header_lacks_something_say_so(gone, tmp_path):
    path = tmp_path / "a.safetensors"
    windows().save(path)
    header, arrays = parts_of(path)
    del header[gone]
    save_file(arrays, path, metadata={"windows": json.dumps(header)})
    with pytest.raises(ValueError, match=f"a.safetensors: expected .*found .*no '{gone}'"):
        Windows.load(path)


@pytest.mark.parametrize("header", ["{", "[]", "3"])
def test_windows_with_a_foreign_header_say_so(header, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"labels": np.zeros(1)}, path, metadata={"windows": header})
    with pytest.raises(ValueError, match="a.safetensors: expected a whole file of windows"):
        Windows.load(path)


def test_windows_that_do_not_fit_their_header_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    windows().save(path)
    header, arrays = parts_of(path)
    arrays["labels"] = arrays["labels"][1:]
    save_file(arrays, path, metadata={"windows": json.dumps(header)})
    with pytest.raises(ValueError, match="a.safetensors: windows: expected 36 of each"):
        Windows.load(path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.safetensors"
    old = windows().select(np.arange(2))
    old.save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # the kernel refuses to write past 100 kB, as it does on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match=r"/a.safetensors: could not be written \(.*[Ff]ile too"):
            windows().save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    equal(Windows.load(path), old)
