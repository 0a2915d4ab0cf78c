"""The command for real recordings: what it says when they are absent, and what it runs."""

from pathlib import Path

import pytest

from biox import real
from biox.config import load_settings
from biox.files import project_root


@pytest.fixture
def ran(monkeypatch):
    """Record which notebooks would be executed; those named in `broken` fail."""
    calls, broken = [], set()

    def execute(template, name, parameters):
        calls.append((template, name, parameters))
        return name not in broken

    monkeypatch.chdir(project_root())
    monkeypatch.setattr(real, "_execute", execute)
    monkeypatch.setattr(real, "_results", lambda settings: [])
    monkeypatch.setattr(real, "_missing", lambda settings, recordings: [])
    return calls, broken


def test_absent_recordings_say_what_to_download(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(project_root())
    assert real.run_real(tmp_path) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 2
    for line, name in zip(said, ("BIDMC", "Mental Arithmetic"), strict=True):
        assert name in line and "PhysioNet" in line and "ODC-By 1.0" in line
        assert "found nothing" in line


def test_every_direction_goes_through_the_same_notebooks(ran, tmp_path):
    calls, _ = ran
    assert real.run_real(tmp_path) == 0
    names = [name for _, name, _ in calls]
    directions = load_settings(project_root() / "params.yaml").real_directions
    for direction in directions:
        order = [names.index(f"{stage}-{direction}") for stage in real.STAGES]
        assert order == sorted(order)
    assert names[-1] == "table1_real" and len(names) == 2 + 4 * len(directions) + 1
    assert calls[0][2]["dataset"] == "bidmc"
    assert Path(calls[0][2]["folder"]).resolve() == tmp_path / "bidmc"


def test_a_failure_stops_its_own_direction_only(ran, tmp_path, capsys):
    calls, broken = ran
    broken.update({"teacher-bidmc-ecg2ppg", "windows-eegmat"})
    assert real.run_real(tmp_path) == 1
    names = [name for _, name, _ in calls]
    assert "activations-bidmc-ecg2ppg" not in names and "bridge-bidmc-ppg2ecg" in names
    assert not any("eegmat-" in name for name in names) and "table1_real" not in names
    assert "bidmc-ecg2ppg, eegmat" in capsys.readouterr().err
