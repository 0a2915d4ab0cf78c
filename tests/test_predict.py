"""A packed bridge: files, streams and the ONNX graph give the same probabilities."""

import itertools
import json
import logging
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from edfio import Edf, EdfSignal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_files import heart
from torch import nn
from toy import SETTINGS, noise

from biox import __main__
from biox.activations import FrozenDirection, frozen_backbone, window_specs
from biox.bridge import BridgedModel, PrototypeBridge
from biox.config import PATHS
from biox.data.windows import UNLABELLED, Recording, Signal, cut
from biox.predict import Stream, annotations, export_onnx, pack, pack_direction, predict

FIXTURES = HealthCheck.function_scoped_fixture
ROOT = Path(__file__).parents[1]
# Every kind of model on either side; other sizes and data sets go the same way.
TRAINED = ["eegmat-ecg2eeg", "eegmat-eeg2ecg", "fog-eeg2emg", "fog-emg2eeg", "dreamer-eeg2ecg",
           "wesad-ecg2ppg", "wesad-ppg2ecg-ecg_fm", "wesad-ppg2ecg-plain_cnn"]  # fmt: skip


def packed(folder, direction, **bridge):
    """Pack an untrained bridge between the pretrained models of a direction."""
    d = SETTINGS.direction(direction)
    specs = window_specs(SETTINGS, d.dataset)
    windows = replace(
        noise({key: specs[key] for key in (d.old_key, d.new_key)}, n=4), classes=("low", "high"),
        subjects=np.array(["a", "a", "b", "b"]), starts=np.array([0.0, 60.0, 0.0, 90.0]),
    )  # fmt: skip
    new, old = (frozen_backbone(SETTINGS, key, windows) for key in (d.new_key, d.old_key))
    torch.manual_seed(0)
    m, l = new.n_layers - 1, 1
    (n_l, d_l), d_m = old.token_shape(l), new.token_shape(m + 1)[1]
    made = PrototypeBridge(d_m, d_l, n_l, 4, 6)
    nn.init.normal_(made.B, std=0.3)
    head = nn.Linear(old.token_shape(old.n_layers)[1], 2)
    changed = SETTINGS.override("bridge", bridge)
    frozen = FrozenDirection(changed, direction, d, new, old, head, m, l, {})
    model = BridgedModel(new, old, made, head, m, l)
    pack(folder, frozen, model, windows, {"balanced accuracy": 0.5})
    return BridgedModel.load(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("packed")


@pytest.fixture(scope="module")
def ecg(folder):
    """From PPG to ECG, of whole recordings."""
    return packed(folder / "ecg", "bidmc-ppg2ecg")


@pytest.fixture(scope="module")
def by_window(folder):
    """From EEG to ECG, conditioned window by window."""
    return packed(folder / "by_window", "isruc-eeg2ecg")


@pytest.fixture(scope="module")
def eeg(folder):
    """From ECG to EEG, of whole recordings, that are only brought to 200 Hz."""
    return packed(folder / "eeg", "eegmat-ecg2eeg")


def ecg_signal(seconds, rate, unit="mV", channels=1):
    waves = [np.round(1000 * heart(seconds, rate, 70 + 9 * i, i)) / 1000 for i in range(channels)]
    return Signal(np.stack(waves), rate, unit, tuple(f"ECG {i}" for i in range(channels)))


def eeg_signal(seconds, rate=200):
    noise = np.random.default_rng(1).normal(size=(6, seconds * rate))
    values = 20 * np.apply_along_axis(np.convolve, 1, noise, np.ones(9) / 3, mode="same")
    return Signal(values, rate, "uV", ("F3", "C3", "O1", "F4", "C4", "O2"))


def probabilities(rows):
    return pd.DataFrame(rows)[["start_s", "p low", "p high"]].to_numpy()


def assert_same(rows, others):
    np.testing.assert_allclose(probabilities(rows), probabilities(others), atol=1e-5)


# --- packing --------------------------------------------------------------------------------------


def test_a_packed_bridge_predicts_what_its_parts_do(ecg):
    signal = ecg_signal(61, 125)
    got = predict(ecg, signal)
    recording = Recording("s", "r", {"ecg": signal}, lambda a, b: UNLABELLED, "toy")
    x = cut(recording, {"ecg": ecg.new.input_spec}, 30, 10, ("low", "high")).signals["ecg"]
    with torch.no_grad():
        expected = ecg(torch.from_numpy(x)).softmax(dim=1).numpy()
    assert got["start_s"].tolist() == [0, 10, 20, 30] and np.ptp(expected) > 1e-3
    np.testing.assert_allclose(got[["p low", "p high"]], expected, atol=1e-6)
    best = expected.argmax(axis=1)
    assert got["predicted"].tolist() == np.array(["low", "high"])[best].tolist()
    assert len(predict(ecg, signal, step=5)) == 7


def test_a_folder_holds_everything_and_refuses_other_files(folder, ecg, tmp_path, monkeypatch):
    names = {"README.md", "recipe.json", "bridge.json"}
    names |= {f"{x}.safetensors" for x in ("bridge", "head", "new", "old")}
    assert {path.name for path in (folder / "ecg").iterdir()} == names
    card = (folder / "ecg" / "README.md").read_text()
    assert "offsets" in card.lower() and "ODC-By" in card and "0.5" in card
    copy = shutil.copytree(folder / "ecg", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)  # needs nothing but the folder
    torch.testing.assert_close(BridgedModel.load(copy).bridge.A, ecg.bridge.A)
    for name in ("new", "head", "bridge"):
        path = copy / f"{name}.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=rf"{name}.safetensors: expected the file .* another"):
            BridgedModel.load(copy)
        path.write_bytes(content)
    (copy / "old.safetensors").unlink()  # then the file that the settings named
    with pytest.raises(FileNotFoundError, match="data/pretrained/ppg.safetensors: expected"):
        BridgedModel.load(copy)
    monkeypatch.chdir(ROOT)
    BridgedModel.load(copy)
    (copy / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="recipe.json: expected the recipe"):
        BridgedModel.load(copy)
    with pytest.raises(FileNotFoundError, match="recipe.json: expected the recipe"):
        BridgedModel.load(tmp_path)


def test_packing_leaves_other_folders_alone(tmp_path, folder, monkeypatch):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="expected a new folder or a packed bridge"):
        packed(tmp_path, "bidmc-ppg2ecg")
    before = sorted((folder / "ecg").iterdir())
    monkeypatch.setattr("biox.predict.card", lambda recipe: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        packed(folder / "ecg", "bidmc-ppg2ecg")
    assert sorted((folder / "ecg").iterdir()) == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    model = BridgedModel.load(folder / "ecg")
    model.recipe = None  # as of a bridge between models that were given
    with pytest.raises(ValueError, match="found no recipe"):
        predict(model, ecg_signal(60, 125))


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edf(tmp_path_factory):
    path, x = tmp_path_factory.mktemp("files") / "a.edf", ecg_signal(61, 125).values[0]
    how = {"digital_range": (-32768, 32767), "physical_range": (-32.768, 32.767)}
    Edf([EdfSignal(x, 125, label="II", physical_dimension="mV", **how)]).write(path)
    return path


def test_files_and_an_mne_raw_give_the_same_probabilities(ecg, edf, tmp_path):
    import mne

    x, expected = ecg_signal(61, 125).values[0], predict(ecg, ecg_signal(61, 125))
    info = mne.create_info(["II"], 125.0, ["ecg"])
    table = pd.DataFrame({"time": np.arange(len(x)) / 125, "II (mV)": x})
    table.to_csv(tmp_path / "a.csv", index=False)
    for source in (edf, tmp_path / "a.csv", mne.io.RawArray(x[None] * 1e-3, info, verbose="ERROR")):
        assert_same(predict(ecg, source), expected)
    assert_same(predict(ecg, tmp_path / "a.csv", channels=[1]), expected)


@pytest.mark.parametrize(("text", "message"), [
    ("II (mV)\n1\n2\n", "the first column is not time but II"),
    ("time,II (mV)\n0,1\n0.1,2\n5,3\n5.1,4\n", "times are not evenly spaced"),
    ("time,II (mV)\n0,one\n", "could not convert string"),
    ("", "No columns to parse"),
    ("time,resp\n0,1\n0.1,2\n0.2,3\n", r"expected the channels \['c0'\], found \['resp'\]"),
])  # fmt: skip
def test_a_csv_says_what_is_wrong(ecg, text, message, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.csv: .*{message}"):
        predict(ecg, tmp_path / "x.csv")


def run(*arguments):
    return __main__.main(list(map(str, arguments)))


def test_the_command_line_writes_tables_and_pictures(folder, ecg, edf, tmp_path, capsys):
    import mne

    bridge = ("--bridge", folder / "ecg")
    assert run("predict", *bridge, "--out", tmp_path, edf) == 0
    stem = tmp_path / "a-bidmc-ppg2ecg"
    ends = ["-annot.edf", "-annot.fif", ".csv", ".png"]
    assert sorted(map(str, tmp_path.iterdir())) == [f"{stem}{end}" for end in ends]
    table = pd.read_csv(f"{stem}.csv")
    assert_same(table, predict(ecg, edf))
    for kind in ("fif", "edf"):
        notes = mne.read_annotations(f"{stem}-annot.{kind}")
        np.testing.assert_allclose(notes.onset, [0, 10, 20, 30])
        np.testing.assert_allclose(notes.duration, [10, 10, 10, 30])
        assert list(notes.description) == table["predicted"].tolist()
    capsys.readouterr()
    (tmp_path / "cut.edf").write_bytes(edf.read_bytes()[:-100])
    assert run("predict", *bridge, "--out", tmp_path / "o", tmp_path / "cut.edf") == 1
    assert "cut.edf: expected" in capsys.readouterr().err and not (tmp_path / "o").exists()
    assert run("predict", "--bridge", tmp_path, edf) == 1
    assert "recipe.json: expected" in capsys.readouterr().err
    assert run("pack", "bidmc-ppg2ecg", tmp_path / "p", "--seed", 99) == 1
    assert "expected a trained bridge, found none" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_windows_that_are_not_sound_have_no_row(ecg, caplog):
    signal = ecg_signal(90, 125)
    signal.values[0, 40 * 125 : 55 * 125] = 0.5
    with caplog.at_level(logging.WARNING):
        frame = predict(ecg, signal, step=30)
    assert frame["start_s"].tolist() == [0, 60] and "dropped 1 of 3" in caplog.text
    assert annotations(frame).duration.tolist() == [30, 30]


# --- centring by subject --------------------------------------------------------------------------


def test_a_bridge_that_centres_says_how_much_signal_it_wants(tmp_path):
    model = packed(tmp_path / "b", "isruc-eeg2ecg", centre="subject")
    assert model.recipe["centre_seconds"] == 90  # of subject a
    assert "wants 90 s of unlabelled signal" in (tmp_path / "b" / "README.md").read_text()
    signal, other = ecg_signal(120, 200), ecg_signal(90, 200)
    with pytest.raises(ValueError, match="expected at least 90 s of unlabelled .* found 60 s"):
        predict(model, ecg_signal(60, 200))
    with pytest.raises(ValueError, match="expected at least 90 s of unlabelled .* found 0 s"):
        Stream(model, 200, "mV")
    rows = Stream(model, 200, "mV", calibration=other).push(signal.values)
    assert_same(rows, predict(model, signal, calibration=other))
    assert np.abs(probabilities(rows) - probabilities(predict(model, signal))).max() > 1e-5


def test_causal_centring_streams_as_it_predicts(tmp_path):
    model = packed(tmp_path / "b", "isruc-eeg2ecg", centre="causal")
    signal = ecg_signal(150, 200)
    assert_same(Stream(model, 200, "mV").push(signal.values), predict(model, signal))


# --- stream ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rate", "unit", "per_window"), [
    ("by_window", 250, "mV", False), ("eeg", 200, "uV", False), ("ecg", 125, "mV", True),
])  # fmt: skip
@settings(max_examples=8, deadline=None, suppress_health_check=[FIXTURES])
@given(data=st.data())
def test_chunks_of_any_size_give_what_the_whole_does(name, rate, unit, per_window, data, request):
    model = request.getfixturevalue(name)
    signal = eeg_signal(66) if name == "eeg" else ecg_signal(66, rate)
    options = {"per_window": per_window, "step": data.draw(st.sampled_from([7.5, 30.0, 33.0]))}
    stream, rows, at = Stream(model, rate, unit, **options), [], 0
    sizes = data.draw(st.lists(st.integers(1, 60 * rate), max_size=6))
    for size in itertools.cycle([*sizes, 1, 97]):
        if at >= 66 * rate:
            break
        rows += stream.push(signal.values[:, at : at + size])
        at += size
    assert_same(rows, predict(model, signal, **options))


def test_a_stream_refuses_what_needs_the_future_and_says_why(ecg, eeg):
    with pytest.raises(ValueError, match="future sample, found ecg_hubert .*zero-phase FIR"):
        Stream(ecg, 125, "mV")
    with pytest.raises(ValueError, match="found eeg_labram of whole recordings"):
        Stream(eeg, 250, "uV")


def test_ten_minutes_of_two_channels_stream_in_bounded_memory(tmp_path):
    model = packed(tmp_path / "b", "dreamer-eeg2ecg")
    stream = Stream(model, 256, "mV", per_window=True, step=25)  # s; windows have 10
    values, rows, held = ecg_signal(50, 256, "mV", 2).values, 0, []
    tracemalloc.start()
    for _ in range(12):
        for part in np.array_split(values, 11, axis=1):
            rows += len(stream.push(part))
            held.append(sum(part.nbytes for part in stream._parts))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 24 and max(held) <= 2 * 256 * 10 * 8 and peak < 1e6  # of 2.5e6 bytes


def test_a_stream_skips_what_is_not_sound(by_window, caplog):
    signal = ecg_signal(90, 200)
    signal.values[0, 35 * 200 : 50 * 200] = 0
    with caplog.at_level(logging.WARNING):
        rows = Stream(by_window, 200, "mV").push(signal.values)
    assert [row["start_s"] for row in rows] == [0, 60] and "30 s: no prediction" in caplog.text


# --- ONNX -----------------------------------------------------------------------------------------


def test_the_onnx_graph_gives_torchs_probabilities(ecg, folder, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="extra biox[onnx] is not installed")
    pytest.importorskip("onnxscript", reason="extra biox[onnx] is not installed")
    path = tmp_path / "bridge.onnx"
    assert run("export", folder / "ecg", path) == 0
    assert list(tmp_path.iterdir()) == [path]
    assert b".py" not in path.read_bytes()  # no paths of the machine that wrote it
    session = onnxruntime.InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["biox"]) == ecg.recipe
    x = torch.randn(3, 1, 1, ecg.new.input_spec.samples)
    for window in x:
        (found,) = session.run(None, {"window": window.numpy()})
        np.testing.assert_allclose(found, ecg(window).softmax(dim=1).detach(), atol=1e-4)
    causal = BridgedModel.load(folder / "ecg")
    causal.recipe = ecg.recipe | {"centre": "causal"}
    with pytest.raises(ValueError, match="without centring, found centre: causal"):
        export_onnx(causal, path)


@pytest.mark.slow
@pytest.mark.parametrize("direction", TRAINED)
def test_streams_and_graphs_of_trained_bridges(direction, tmp_path):
    if not (ROOT / PATHS.results("bridges", direction) / "seed-0").is_dir():
        pytest.skip("no bridge of this direction in data/bridges: run `make repro`")
    model = BridgedModel.load(pack_direction(direction, 0, tmp_path / "b"))
    spec, rng = model.new.input_spec, np.random.default_rng(0)
    values = 100 * rng.normal(size=(spec.channels, round(2.6 * spec.samples)))
    signal = Signal(values, spec.rate, "uV", tuple(f"c{i}" for i in range(spec.channels)))
    rows = Stream(model, spec.rate, "uV", per_window=True).push(values)
    expected = predict(model, signal, per_window=True)
    np.testing.assert_allclose(pd.DataFrame(rows).iloc[:, 3:], expected.iloc[:, 3:], atol=1e-5)
    pytest.importorskip("onnxruntime", reason="extra biox[onnx] is not installed")
    assert export_onnx(model, tmp_path / "b.onnx") <= 1e-4
