"""Splits: nobody on two sides, no class missing, the published protocol's leak measured."""

from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from raw_files import ECG, EEG, EMG, PPG, recording, write_fog, write_wesad

from biox.config import Dataset
from biox.data.readers import wesad
from biox.data.splits import (
    PUBLISHED_FRACTIONS,
    blocked_split,
    cut_dataset,
    overlap,
    read_windows,
    shuffle_split,
    standardise_stretches,
)
from biox.data.windows import UNLABELLED, Windows


def grid(n, step=0.3, names=("a",), seconds=3.0):
    """Windows every `step` seconds in each of the named recordings, with one-sample signals."""
    starts = np.tile(np.arange(n) * step, len(names))
    total = len(starts)
    return Windows(
        signals={"eeg": np.arange(total, dtype=np.float32)[:, None, None]},
        rates={"eeg": 1 / seconds},
        units={"eeg": "uV"},
        channels={"eeg": ("Cz",)},
        labels=(np.arange(total) // 7 % 2).astype(np.int64),
        subjects=np.repeat(list(names), n),
        recordings=np.repeat(list(names), n),
        starts=starts,
        classes=("normal", "freezing"),
        source="test",
    )


def keys(windows):
    return list(zip(windows.recordings.tolist(), windows.starts.tolist(), strict=True))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(8, 200), seed=st.integers(0, 10**6))
def test_splits_of_windows_do_not_depend_on_input_order(n, seed):
    windows = grid(n, names=("a", "b", "c10", "c9"))
    parts = shuffle_split(windows, PUBLISHED_FRACTIONS, seed)
    mixed = windows.select(np.random.default_rng(seed + 1).permutation(4 * n))
    mixed = shuffle_split(mixed, PUBLISHED_FRACTIONS, seed)
    assert list(parts) == list(PUBLISHED_FRACTIONS)
    assert list(map(keys, parts.values())) == list(map(keys, mixed.values()))
    everything = [key for part in parts.values() for key in keys(part)]
    assert sorted(everything) == sorted(keys(windows))
    for name, part in parts.items():
        assert abs(len(part) - 4 * n * PUBLISHED_FRACTIONS[name] / 99) <= 1


def test_the_published_protocol_leaks():
    windows = grid(4000)
    parts, other = (shuffle_split(windows, PUBLISHED_FRACTIONS, seed) for seed in (0, 1))
    assert keys(parts["test"]) != keys(other["test"])
    leak = overlap(parts["test"], parts["train"])
    # Each window overlaps 9 earlier and 9 later ones, each in train with probability 1/3.
    assert leak == pytest.approx(1 - (2 / 3) ** 18, abs=2e-3)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), step=st.sampled_from([0.3, 1.0, 2.9, 3.0, 5.0]))
def test_overlap_equals_comparing_all_pairs(seed, step):
    rng = np.random.default_rng(seed)
    windows = grid(30, step, names=("a", "b"))
    side = rng.random(len(windows)) < 0.5
    side[:2] = True, False
    test, train = windows.select(side), windows.select(~side)
    hits = [any(r == q and abs(s - u) < 3.0 - 1e-6 for q, u in keys(train)) for r, s in keys(test)]
    assert overlap(test, train) == pytest.approx(np.mean(hits))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_blocks_share_no_moment(seed):
    """Whatever the seed, no window of one split overlaps one of another in time."""
    windows = grid(300, names=("a", "b", "c"))
    parts = blocked_split(windows, PUBLISHED_FRACTIONS, seed)
    for one, other in permutations(parts.values(), 2):
        assert overlap(one, other) == 0
    assert sum(map(len, parts.values())) > 0.6 * len(windows)


def test_a_stretch_has_mean_0_and_deviation_1():
    x = np.random.default_rng(0).normal(5, 20, size=(2, 50 * 302))
    pieces = sliding_window_view(x, 150, axis=1)[:, ::50].swapaxes(0, 1)  # 3 s every second
    about = {"rates": {"eeg": 50.0}, "units": {"eeg": "z-score"}, "channels": {"eeg": ("C3", "C4")}}
    windows = replace(grid(300, step=1.0), signals={"eeg": pieces.astype(np.float32)}, **about)
    parts = standardise_stretches(blocked_split(windows, PUBLISHED_FRACTIONS, seed=0))
    for part in parts.values():
        for run in np.split(np.arange(len(part)), np.flatnonzero(np.diff(part.starts) > 1.1) + 1):
            first, last = part.starts[run[[0, -1]]].astype(int)
            stretch = x[:, 50 * first : 50 * (last + 3)]
            mean, spread = stretch.mean(axis=1), stretch.std(axis=1)
            want = (pieces[first : last + 1] - mean[:, None]) / spread[:, None]
            np.testing.assert_allclose(part.signals["eeg"][run], want, atol=1e-4)


# From files to splits

SPLITS = {"train": ["S2"], "val": ["S3"], "pair": ["S4"], "test": ["S5"]}
SPECS = {"ecg": ECG, "ppg": PPG}


def wesad_folder(folder, **codes):
    for subjects in SPLITS.values():
        track = np.repeat(codes.get(subjects[0], [1, 2, 3]), 46667)[:140000]
        write_wesad(folder, subjects[0], seconds=200, track=track)


def dataset(**changed):
    """An entry of ``datasets`` in params.yaml."""
    plain = dict(
        source="original", folder="unused", seconds=60.0, step=10.0, condition_per="recording",
        splits=SPLITS,
    )  # fmt: skip
    return Dataset(**(plain | changed))


@pytest.mark.parametrize(("changed", "source", "options"), [
    ({}, f"original {wesad.ABOUT.title}", {}),
    ({"source": "simulated", "condition_per": "window", "resampling": "polyphase"},
     "simulated", {"per_window": True, "resampling": "polyphase"}),
])  # fmt: skip
def test_cut_dataset_goes_from_files_to_windows(changed, source, options, tmp_path):
    wesad_folder(tmp_path)
    specs = SPECS | {"raw": replace(ECG, conditioning="ecg_ecgfm")}
    parts = cut_dataset("mine", dataset(reader="wesad", **changed), specs, tmp_path)
    assert list(parts) == list(SPLITS) and len(parts["pair"]) == 15
    for split, part in parts.items():
        assert (part.source, part.classes) == (source, wesad.CLASSES)
        assert set(part.subjects) == set(SPLITS[split])
        assert (UNLABELLED in part.labels) == (split == "pair")
    want = read_windows(wesad, tmp_path, SPLITS["pair"], specs, 60.0, 10.0, **options)
    for name in specs:
        np.testing.assert_array_equal(parts["pair"].signals[name], want.signals[name])


def test_cut_dataset_names_missing_classes_and_subjects(tmp_path):
    wesad_folder(tmp_path, S3=[1, 2, 2])
    with pytest.raises(ValueError, match="val: .*every class, found .*'amusement': 0"):
        cut_dataset("wesad", dataset(), SPECS, tmp_path)
    message = "expected files of S9, S77 of 'WESAD.* licence non-.*; found S2, S3, S4, S5$"
    with pytest.raises(FileNotFoundError, match=message):
        cut_dataset("wesad", dataset(splits=SPLITS | {"val": ["S9", "S77"]}), SPECS, tmp_path)
    twice = dataset(splits=SPLITS | {"val": ["S3", "s3 "]})
    with pytest.raises(ValueError, match="expected each subject once, found s3 again"):
        cut_dataset("wesad", twice, SPECS, tmp_path)


def test_read_windows_passes_options_on_and_keeps_the_order():
    alive = []

    def read(folder, subject, classes, source="mine"):
        alive.append(subject)
        return [recording(60.0, subject=subject, name=f"{subject}{i}") for i in (1, 2)]

    reader = SimpleNamespace(CLASSES=(), subjects=lambda folder: ["p1", "p2"], read=read)
    options = {"classes": ("low", "high"), "source": "y"}
    windows = read_windows(reader, "x", ["p2", "p1"], {"ecg": ECG}, 60.0, 60.0, **options)
    assert alive == ["p2", "p1"] and windows.classes == ("low", "high")
    assert windows.recordings.tolist() == ["p21", "p22", "p11", "p12"]
    assert list(windows.signals) == ["ecg"]


def fog_table():
    table = np.round(np.random.default_rng(0).normal(scale=20, size=(30000, 61)), 1)
    table[:, 60] = np.arange(30000) // 1500 % 2
    return table


def fog_parts(folder, **changed):
    choice = dataset(seconds=3.0, step=0.6, splits={"all": ["001"]}, **changed)
    specs = {"eeg": replace(EEG, unit="uV"), "emg": EMG}
    return cut_dataset("fog", choice, specs, folder)


def test_the_published_protocol_of_fog_splits_shuffled_windows(tmp_path):
    write_fog(tmp_path, table=fog_table())
    parts = fog_parts(tmp_path, protocol="shuffled_windows")
    assert list(parts) == ["train", "val", "pair", "test"]
    assert overlap(parts["test"], parts["train"]) > 0.8
    assert UNLABELLED not in parts["pair"].labels


def test_z_scores_by_stretch_read_no_sample_of_another_split(tmp_path):
    table = fog_table()
    write_fog(tmp_path, table=table)
    ways = [{"protocol": "blocked_windows", "condition_per": x} for x in ("stretch", "recording")]
    plain, published = (fog_parts(tmp_path, **way) for way in ways)
    for split, part in plain.items():
        np.testing.assert_array_equal(part.starts, published[split].starts)
        np.testing.assert_array_equal(part.signals["eeg"], published[split].signals["eeg"])
        assert split == "test" or overlap(plain["test"], part) == 0
    for start in plain["test"].starts:
        table[round(500 * start) + 20 : round(500 * (start + 3)) - 20, 27:32] += 999
    write_fog(tmp_path, table=table)
    for way, before, same in zip(ways, (plain, published), (True, False), strict=True):
        after = fog_parts(tmp_path, **way)["train"].signals["emg"]
        assert np.allclose(after, before["train"].signals["emg"], atol=1e-3) is same
    with pytest.raises(ValueError, match="expected recording or window with shuffled windows"):
        dataset(condition_per="stretch", protocol="shuffled_windows", splits={"all": ["p1"]})
