"""From a folder of files to a bridge that predicts, by the commands of the README."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from edfio import Edf, EdfSignal
from raw_files import heart

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "notebooks" / "23_your_recordings.ipynb"


@pytest.mark.slow
def test_the_commands_of_the_readme_lead_from_a_folder_to_a_prediction(tmp_path):
    """Eight patients of BIDMC, half of them with a fast pulse; one epoch."""
    rows, source = [], ROOT / "data/recordings/bidmc"
    for number in (1, 5, 8, 12, 15, 18, 23, 25):
        for end in ("hea", "dat"):
            shutil.copy(source / f"bidmc_{number:02}.{end}", tmp_path)
        for start in range(0, 480, 60):  # what is learnt does not matter here
            label = "task" if start % 120 else "rest"
            rows.append((f"bidmc_{number:02}.hea", f"p{number}", start, start + 60, label))
    table = pd.DataFrame(rows, columns=["file", "subject", "start_s", "stop_s", "label"])
    table.to_csv(tmp_path / "labels.csv", index=False)
    commands = r"^(?:papermill notebooks/23|python -m biox predict).*?(?=   #|$)"
    run, predict = re.findall(commands, (ROOT / "README.md").read_text(), re.M)
    run = run.replace("FOLDER", str(tmp_path)).replace("yours.ipynb", str(tmp_path / "yours.ipynb"))
    run = [*shlex.split(run), "-p", "out", str(tmp_path / "out"), "-p", "epochs", "1"]
    run[run.index("-y") + 1] = run[run.index("-y") + 1][:-1] + ", methods: []}"
    bridge = str(tmp_path / "out" / "bridge")
    predict = predict.replace("data/yours/bridge", bridge)
    predict = [*shlex.split(predict.replace("FILE", str(tmp_path / "bidmc_01.hea")))[1:]]
    assert run[0] == "papermill" and "--bridge" in predict
    for command in (["-m", *run], [*predict, "--out", str(tmp_path / "predicted")]):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    assert len(list((tmp_path / "predicted").iterdir())) == 4
    (csv,) = (tmp_path / "predicted").glob("*.csv")
    frame = pd.read_csv(csv)
    assert len(frame) == 46 and {"p rest", "p task"} <= set(frame)
    np.testing.assert_allclose(frame[["p rest", "p task"]].sum(axis=1), 1, atol=1e-5)


@pytest.fixture
def from_annotations():
    (cell,) = (c for c in nbformat.read(PAGE, as_version=4).cells if c.id == "cell-04")
    names = {}
    exec(cell.source, names)
    return names["from_annotations"]


def annotated(path):
    """A file with 60 s of one ECG; a rest, an artefact, a task and an event without a length."""
    import mne

    signal = EdfSignal(heart(60, 100), 100, label="II", physical_dimension="mV")
    Edf([signal]).write(path)
    raw = mne.io.read_raw_edf(path, verbose="ERROR")
    raw.set_annotations(
        mne.Annotations([0, 20, 30, 55], [20, 5, 20, 0], ["rest", "BAD_move", "task", "button"])
    )
    return raw


EXPECTED = [(0, 20, "rest"), (30, 50, "task")]


def test_annotations_in_files_are_labels(from_annotations, tmp_path):
    (tmp_path / "data" / "ann").mkdir(parents=True)
    for name in ("ann/one_raw.fif", "bob_raw.fif"):
        annotated(tmp_path / "raw.edf").save(tmp_path / "data" / name, verbose="ERROR")
    rows = from_annotations(tmp_path / "data")
    assert [row[1] for row in rows] == ["ann", "ann", "bob", "bob"]
    assert [row[2:] for row in rows] == EXPECTED * 2
    assert rows[0][0] == tmp_path / "data" / "ann" / "one_raw.fif"


def test_events_of_a_bids_folder_are_labels(from_annotations, tmp_path):
    mne_bids = pytest.importorskip("mne_bids", reason="extra biox[bids] is not installed")
    raw = annotated(tmp_path / "raw.edf")
    raw.set_channel_types({"II": "eeg"}, verbose="ERROR")  # BIDS has a folder for EEG, none for ECG
    path = mne_bids.BIDSPath(subject="07", task="x", root=tmp_path / "bids", datatype="eeg")
    mne_bids.write_raw_bids(raw, path, verbose="ERROR")
    rows = from_annotations(tmp_path / "bids")
    assert {row[1] for row in rows} == {"07"} and [row[2:] for row in rows] == EXPECTED
    assert Path(rows[0][0]).suffix == ".edf" and Path(rows[0][0]).is_file()
