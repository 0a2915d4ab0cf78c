"""The list of deviations is complete, names real settings, and says what was measured."""

import re
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from fill import GOLDEN
from scipy.signal import resample_poly

from biox.config import BackboneChoice, Bridge, Dataset, Positions, Settings, Teacher, load_settings
from biox.data import READERS
from biox.data.simulate import simulate_fog
from biox.deviations import BRIDGE_VARIANTS, independent_cka
from biox.deviations_data import fog_protocols, linear_oracle, parameter_counts
from biox.experiment import cut_dataset, input_spec
from biox.report import deviations as report

SETTINGS = load_settings(GOLDEN.parent.parent / "params.yaml")
SECTIONS = {
    "bridge": Bridge,
    "positions": Positions,
    "teacher": Teacher,
    "datasets": Dataset,
    "backbones": BackboneChoice,
}


def test_there_are_sixteen_and_each_is_measured_or_says_why_not():
    rows = report.facts()
    assert list(rows.index) == list(range(1, 17))
    assert not rows.drop(columns="not_measured").isna().any().any()
    measured = {1, 2, 3, 4, 5, 6, 9, 10, 13, 14, 15, 16}
    assert set(rows.index[rows["not_measured"].isna()]) == measured
    assert rows["verdict"].str.match("keep|fix|choose|report").all()
    assert not rows.map(lambda text: "|" in str(text)).any().any()  # would end a cell of the md


def test_settings_named_there_exist_and_start_with_the_default():
    top = {f.name for f in fields(Settings)}
    for text in report.facts()["setting"]:
        for setting in filter(None, text.split("; ")):
            name, _, values = setting.partition(": ")
            section, *_, last = [*name.split("."), name]
            assert section in top
            if "." not in name:
                continue
            last = name.split(".")[-1]
            assert last in {f.name for f in fields(SECTIONS[section])}
            if section in ("bridge", "positions") and values:
                assert getattr(getattr(SETTINGS, section), last) == values.split(" or ")[0]


def test_variants_change_settings_to_something_else():
    for number, changes in BRIDGE_VARIANTS.values():
        assert all(getattr(SETTINGS.bridge, k) != v for k, v in changes.items())
        assert bool(changes) == (number is not None)
        replace(SETTINGS.bridge, **changes)


def test_bridges_at_published_sizes_have_the_released_number_of_parameters():
    counts = parameter_counts()
    assert len(counts) == 6
    assert (counts["parameters"] == counts["released code"]).all()
    golden = {path.stem: np.load(path) for path in GOLDEN.glob("bridge_*.npz")}
    for direction, row in counts.iterrows():
        released = golden["bridge_" + direction.replace("-", "_")]
        assert row["N_l x d_l"] == f"{released['n_tokens']} x {released['out_features']}"
        assert (row["d_m"], row["rank"]) == (released["in_features"], released["rank"])


def test_biased_cka_of_independent_features_is_what_expectation_says():
    """E tr(K L) = n p q, E tr(K K) = n p (n + p), up to terms of order 1 / n."""
    n, (p, q) = 200, (768, 200)
    expected = np.sqrt(p * q / ((n + p) * (n + q)))
    table = independent_cka((n,), (p, q))
    assert table.loc[n, "biased"] == pytest.approx(expected, abs=0.01)
    assert expected == pytest.approx(0.63, abs=0.001)
    assert abs(table.loc[n, "debiased"]) < 0.03


def test_variants_stand_beside_the_default_of_their_own_direction():
    rows = [
        ("a", "default", None, 0, 60.0),
        ("a", "default", None, 1, 70.0),
        ("a", "x", 3, 0, 64.0),
        ("a", "x", 3, 1, 68.0),
        ("b", "default", None, 0, 40.0),
        ("b", "x", 3, 0, 50.0),
    ]
    columns = ["direction", "variant", "number", "seed", report.SCORE]
    table = report.against_default(pd.DataFrame(rows, columns=columns).assign(collapsed=False))
    assert table.loc[("a", "x"), "difference"] == pytest.approx(1)
    assert table.loc[("a", "x"), "sd"] == pytest.approx(np.sqrt(8))
    assert table.loc[("b", "x"), "default"] == 40 and table.loc[("b", "x"), "difference"] == 10


def test_what_test_would_have_picked_is_compared_with_what_val_kept():
    rows = {"direction": "a", "seed": [0, 0, 1, 1], "score": [50.0, 54.0, 61.0, 60.0]}
    epochs = pd.DataFrame(rows | {"kept": [True, False, True, False]})
    assert "2.0 points" in report.picked(epochs)  # mean of 4 and 0


@pytest.fixture(scope="module")
def fog(tmp_path_factory):
    """Settings on short simulated recordings, with an untrained EEG model."""
    folder = tmp_path_factory.mktemp("fog")
    simulate_fog(folder, patients=("001", "002", "008"), seconds=40.0)
    splits = {"all": ("001", "002", "008")}
    data = replace(SETTINGS.datasets["fog"], folder=str(folder), splits=splits)
    backbones = {m: replace(c, checkpoint=None) for m, c in SETTINGS.backbones.items()}
    return replace(SETTINGS, datasets=SETTINGS.datasets | {"fog": data}, backbones=backbones)


def test_the_resampling_of_the_settings_reaches_the_windows(fog):
    specs = {"eeg": input_spec(fog, "fog", "eeg")}
    choice = replace(fog.datasets["fog"], protocol="shuffled_windows")
    parts = {
        name: cut_dataset("fog", replace(choice, resampling=name), choice.folder, specs)["test"]
        for name in ("linear", "polyphase")
    }
    default = cut_dataset("fog", choice, choice.folder, specs)["test"]
    x, y = (part.signals["eeg"] for part in parts.values())
    np.testing.assert_array_equal(default.signals["eeg"], x)
    assert x.shape == y.shape and 0.001 < (x - y).std() / y.std() < 0.5
    first = parts["polyphase"].select([0])
    recordings = READERS["fog"].read(choice.folder, first.subjects[0])
    (raw,) = (r.signals["eeg"] for r in recordings if r.name == first.recordings[0])
    clean = resample_poly(raw.values, 2, 5, axis=1, padtype="line") / 100  # to 200 Hz, 100 uV
    start = round(first.starts[0] * 200)
    np.testing.assert_allclose(y[0], clean[:, start : start + 600], rtol=1e-3, atol=1e-4)


def test_only_shuffled_windows_overlap(fog):
    table = fog_protocols(fog, deals=2)
    shares = table["test windows overlapping train (%)"]
    shuffled = shares.index.map(lambda name: bool(re.match("shuffled", name)))
    assert (shares[shuffled] > 90).all() and (shares[~shuffled] == 0).all()
    assert table["Oracle: balanced accuracy (%)"].between(0, 100).all()


def test_linear_oracle_is_perfect_where_the_feature_is_the_class():
    from test_training import toy_windows

    class Mean(torch.nn.Module):
        weight = torch.nn.Parameter(torch.zeros(1))

        def parameters(self, recurse=True):
            yield self.weight

        def forward(self, x):
            return x

        @staticmethod
        def pool(h):
            return h.mean(dim=2)

    windows = toy_windows()
    shifted = windows.signals["ppg"] + 5 * windows.labels[:, None, None].astype(np.float32)
    told = replace(windows, signals={"ppg": shifted, "ecg": windows.signals["ecg"]})
    assert linear_oracle(Mean(), {"train": told, "test": told}, "ppg") == 100
