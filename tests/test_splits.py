"""Splits: nobody on two sides, no class missing, the published protocol's leak measured."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import ECG, EEG, PPG, recording, write_fog, write_wesad

from biox.config import Dataset
from biox.data.readers import wesad
from biox.data.splits import (
    PUBLISHED_FRACTIONS,
    blocked_split,
    cut_dataset,
    overlap,
    read_windows,
    shuffle_split,
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
    assert {name: keys(part) for name, part in parts.items()} == {
        name: keys(part) for name, part in mixed.items()
    }
    everything = [key for part in parts.values() for key in keys(part)]
    assert sorted(everything) == sorted(keys(windows))
    for name, part in parts.items():
        assert abs(len(part) - 4 * n * PUBLISHED_FRACTIONS[name] / 99) <= 1


def test_seeds_decide():
    windows = grid(300)
    a, b, c = (
        keys(shuffle_split(windows, PUBLISHED_FRACTIONS, seed)["test"]) for seed in (1, 1, 2)
    )
    assert a == b != c


def test_the_published_protocol_leaks():
    windows = grid(4000)
    parts = shuffle_split(windows, PUBLISHED_FRACTIONS, seed=0)
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


SPLITS = {"train": ["S2"], "val": ["S3"], "pair": ["S4"], "test": ["S5"]}
SPECS = {"ecg": ECG, "ppg": PPG}


def track(codes, seconds=200):
    n = seconds * 700
    return np.repeat(codes, -(-n // len(codes)))[:n]


def wesad_folder(folder, **tracks):
    for subject in ("S2", "S3", "S4", "S5"):
        write_wesad(folder, subject, seconds=200, track=tracks.get(subject, track([1, 2, 3])))


def dataset(**changed):
    """An entry of ``datasets`` in params.yaml."""
    plain = dict(
        source="original", folder="unused", seconds=60.0, step=2.0, condition_per="recording",
        splits=SPLITS,
    )  # fmt: skip
    return Dataset(**(plain | changed))


def test_cut_dataset_goes_from_files_to_windows(tmp_path):
    wesad_folder(tmp_path)
    parts = cut_dataset("wesad", dataset(source="simulated"), SPECS, tmp_path)
    assert {name: set(part.subjects) for name, part in parts.items()} == {
        name: set(subjects) for name, subjects in SPLITS.items()
    }
    for name, part in parts.items():
        assert (part.source, part.classes) == ("simulated", wesad.CLASSES)
        assert (UNLABELLED in part.labels) == (name == "pair")
    assert len(parts["pair"]) == 71 and parts["pair"].signals["ecg"].shape[1:] == (1, 6000)


def test_cut_dataset_names_missing_classes_and_subjects(tmp_path):
    wesad_folder(tmp_path, S3=track([1, 2, 2]))
    with pytest.raises(ValueError, match="val: .*every class, found .*'amusement': 0"):
        cut_dataset("wesad", dataset(step=5.0), SPECS, tmp_path)
    message = "expected files of S9, S77 of 'WESAD.* licence non-.*; found S2, S3, S4, S5$"
    with pytest.raises(FileNotFoundError, match=message):
        cut_dataset("wesad", dataset(splits=SPLITS | {"val": ["S9", "S77"]}), SPECS, tmp_path)
    twice = dataset(splits=SPLITS | {"val": ["S3", "s3 "]})
    with pytest.raises(ValueError, match="expected each subject once, found s3 again"):
        cut_dataset("wesad", twice, SPECS, tmp_path)


def test_read_windows_passes_options_on_and_keeps_one_subject_at_a_time():
    alive = []

    def read(folder, subject, classes, source="mine"):
        alive.append(subject)
        return [recording(60.0, subject=subject, name=f"{subject}{i}") for i in (1, 2)]

    reader = SimpleNamespace(CLASSES=(), subjects=lambda folder: ["p1", "p2"], read=read)
    windows = read_windows(
        reader, "x", ["p2", "p1"], {"ecg": ECG}, 60.0, 60.0, classes=("low", "high"), source="y"
    )
    assert alive == ["p2", "p1"] and windows.classes == ("low", "high")
    assert windows.recordings.tolist() == ["p21", "p22", "p11", "p12"]
    assert list(windows.signals) == ["ecg"]


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_blocks_share_no_moment(seed):
    """Whatever the seed, no window of one split overlaps one of another in time."""
    windows = grid(300, names=("a", "b", "c"))
    parts = blocked_split(windows, PUBLISHED_FRACTIONS, seed)
    for name, part in parts.items():
        for other, rest in parts.items():
            if name != other:
                assert overlap(part, rest) == 0
    assert sum(map(len, parts.values())) > 0.6 * len(windows)


def test_cut_dataset_follows_its_settings(tmp_path):
    wesad_folder(tmp_path)
    specs = SPECS | {"raw": replace(ECG, conditioning="ecg_ecgfm")}
    parts = cut_dataset("mine", dataset(reader="wesad"), specs, tmp_path)
    for split, part in parts.items():
        assert part.source == f"original {wesad.ABOUT.title}" and set(part.signals) == set(specs)
        options = {"keep_unlabelled": split == "pair"}
        want = read_windows(wesad, tmp_path, SPLITS[split], specs, 60.0, 2.0, **options)
        np.testing.assert_array_equal(part.signals["raw"], want.signals["raw"])
    simulated = dataset(source="simulated", condition_per="window", resampling="polyphase")
    other = cut_dataset("wesad", simulated, SPECS, tmp_path)["test"]
    assert other.source == "simulated"
    np.testing.assert_allclose(other.signals["ecg"].std(axis=2), 1, rtol=1e-4)


@pytest.mark.parametrize("protocol", ["blocked_windows", "shuffled_windows"])
def test_cut_dataset_splits_windows_within_subjects(protocol, tmp_path):
    rng = np.random.default_rng(0)
    table = np.round(rng.normal(scale=20, size=(40000, 61)), 1)
    table[:, 60] = np.arange(40000) // 2500 % 2
    write_fog(tmp_path, table=table)
    specs = {"eeg": EEG}
    choice = dataset(seconds=3.0, step=0.6, protocol=protocol, splits={"all": ["001"]})
    parts = cut_dataset("fog", choice, specs, tmp_path)
    assert list(parts) == ["train", "val", "pair", "test"]
    leak = overlap(parts["test"], parts["train"])
    assert leak == 0 if protocol == "blocked_windows" else leak > 0.8
    assert UNLABELLED not in parts["pair"].labels
