"""Tiny raw files in the published layouts, and the synthetic signals behind the golden numbers."""

import pickle
from pathlib import Path

import fill
import numpy as np
from scipy.io import savemat

from biox.backbones.base import InputSpec
from biox.data.windows import Recording, Signal

GOLDEN = Path(__file__).parent / "golden"

ECG = InputSpec("ecg", 1, 100.0, 60.0, "z-score", "ecg_hubert")
PPG = InputSpec("ppg", 1, 125.0, 60.0, "z-score", "ppg_papagei")
EEG = InputSpec("eeg", 6, 200.0, 3.0, "uV", "eeg_labram")
EMG = InputSpec("emg", 3, 130.0, 3.0, "z-score", "emg_normwear")


# The golden files' signals


def noise(tag, shape, scale=1.0):
    """Normal numbers seeded by the tag."""
    return fill.windows(tag, shape, scale).numpy().astype(float)


def samples(x):
    """The 64 values of an array that the golden files keep."""
    return fill.samples(np.asarray(x))


def golden(name):
    with np.load(GOLDEN / f"preprocess_{name}.npz") as file:
        return dict(file)


def wesad_signals():
    t1, t2 = np.arange(480 * 700) / 700, np.arange(480 * 64) / 64
    ecg = np.sin(2 * np.pi * 1.2 * t1) + 0.5 * np.sin(2 * np.pi * 7 * t1)
    ecg += 0.3 * np.sin(2 * np.pi * 0.02 * t1) + 0.2 * noise("raw:WESAD:ecg", t1.shape) + 0.7
    bvp = 30 * np.sin(2 * np.pi * 1.2 * t2) + 10 * np.sin(2 * np.pi * 2.4 * t2)
    return ecg, bvp + 5 * noise("raw:WESAD:bvp", t2.shape)


def isruc_ecg():
    t = np.arange(6000) / 200
    x = np.sin(2 * np.pi * 1.1 * t) + 0.4 * np.sin(2 * np.pi * 9 * t)
    x = x * np.linspace(0.5, 2, 12)[:, None] + 0.2 * noise("raw:ISRUC:X2", (12, 6000))
    x[5] = 0.25
    return x


# Raw files


def heart(seconds, rate, beats=70.0, seed=0):
    """Something ECG-like in mV: a narrow bump at every beat, and noise."""
    t = np.arange(round(seconds * rate)) / rate
    phase = (t * beats / 60) % 1.0
    bump = np.exp(-0.5 * ((phase - 0.5) / 0.03) ** 2)
    return bump + 0.02 * np.random.default_rng(seed).normal(size=t.size)


def write_wesad(folder, subject="S2", seconds=200, track=None, **changed):
    rng = np.random.default_rng(int(subject[1:]))
    n, m = seconds * 700, seconds * 64
    if track is None:
        track = np.repeat([1, 2, 3], -(-n // 3))[:n]
    signal = {
        "chest": {"ECG": heart(seconds, 700)[:, None], "Temp": np.ones((n, 1), np.float32)},
        "wrist": {"BVP": 30 * rng.normal(size=(m, 1)), "TEMP": np.ones((seconds * 4, 1))},
    }
    content = {"subject": subject, "signal": signal, "label": np.asarray(track)} | changed
    path = folder / subject / f"{subject}.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def write_fog(folder, session="001", task=1, table=None, rows=3000):
    if table is None:
        rng = np.random.default_rng(task)
        table = np.round(rng.normal(scale=20, size=(rows, 61)), 3)
        table[:, 60] = np.arange(rows) >= rows // 2
    path = folder / session / f"task_{task}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    form = ["%d", "%.6g"] + ["%.6g"] * 58 + ["%d"]
    np.savetxt(path, table, delimiter=",", fmt=form)
    return path


def write_isruc(folder, subject="1", n=4, stages=None, **changed):
    rng = np.random.default_rng(int(subject))
    names = "F3_A2 C3_A2 O1_A2 F4_A1 C4_A1 O2_A1 X1".split()
    epochs = {name: 20 * rng.normal(size=(n, 6000)) for name in names}
    epochs["X2"] = heart(30 * n, 200).reshape(n, 6000)
    epochs = {k: v for k, v in (epochs | changed).items() if v is not None}
    mat = folder / "ExtractedChannels" / f"subject{subject}.mat"
    text = folder / "RawData" / subject / f"{subject}_1.txt"
    mat.parent.mkdir(parents=True, exist_ok=True)
    text.parent.mkdir(parents=True)
    savemat(mat, epochs)
    stages = list(stages if stages is not None else [0, 5, 2, 0][:n]) + [0] * 30
    text.write_text("\r\n".join(map(str, stages)) + "\r\n\r\n")
    return mat, text


def dreamer_person(seed=0, n_clips=3, seconds=20, **changed):
    rng = np.random.default_rng(seed)
    lengths = [seconds + 2 * clip for clip in range(n_clips)]
    eeg = [4200 + 20 * rng.normal(size=(128 * n, 14)) for n in lengths]
    ecg = [2000 + 300 * np.stack([heart(n, 256), -heart(n, 256)], axis=1) for n in lengths]
    scores = np.resize([[2.0], [4.0], [3.0], [5.0]], (n_clips, 1))
    person = {
        "Age": "22",
        "EEG": {"baseline": [x[: 128 * 5] for x in eeg], "stimuli": eeg},
        "ECG": {"baseline": [x[: 256 * 5] for x in ecg], "stimuli": ecg},
        "ScoreValence": scores,
        "ScoreArousal": 6 - scores,
        "ScoreDominance": np.full((n_clips, 1), 1.0),
    }
    return {k: v for k, v in (person | changed).items() if v is not None}


def _cell(items, row=False):
    """A MATLAB cell array."""
    cell = np.empty(len(items), dtype=object)
    cell[:] = items
    return cell[None] if row else cell[:, None]


def write_dreamer(folder, people=None, electrodes=None, **fields):
    """``DREAMER.mat`` as its authors nest it; `electrodes` and more fields beside the data."""
    folder.mkdir(parents=True, exist_ok=True)
    nested = []
    for person in people or [dreamer_person()]:
        cells = {key: value for key, value in person.items() if isinstance(value, dict)}
        for key, value in cells.items():
            cells[key] = {part: _cell(clips) for part, clips in value.items()}
        nested.append(person | cells)
    fields = {"EEG_SamplingRate": 128, "ECG_SamplingRate": 256} | fields
    if electrodes is not None:
        fields["EEG_Electrodes"] = _cell(electrodes, row=True)
    savemat(folder / "DREAMER.mat", {"DREAMER": {"Data": _cell(nested, row=True), **fields}})
    return folder / "DREAMER.mat"


def recording(seconds=200.0, label=None, subject="a", name="a1", **changed):
    """A plain ECG + PPG recording, without a file."""
    t = np.arange(round(seconds * 125)) / 125
    rng = np.random.default_rng(1)
    ecg, ppg = heart(seconds, 250)[None], np.sin(2 * np.pi * 1.2 * t)[None]
    signals = {
        "ecg": Signal(ecg, 250.0, "mV", ("II",)),
        "ppg": Signal(ppg + 0.01 * rng.normal(size=ppg.shape), 125.0, "a.u.", ("PLETH",)),
    }
    label = label or (lambda start, stop: int(start >= seconds / 2))
    return Recording(subject, name, signals | changed, label, "test")
