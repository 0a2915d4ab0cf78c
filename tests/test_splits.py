"""Splits: nobody on two sides, no class missing, the published protocol's leak measured."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import ECG, PPG, recording, write_wesad

from biox.data import wesad
from biox.data.splits import (
    blocked_split,
    check_classes,
    check_disjoint,
    make_splits,
    overlap,
    read_windows,
    shuffle_split,
)
from biox.data.windows import UNLABELLED, Windows

FOG = {"train": 33, "val": 11, "pair": 33, "test": 22}


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


def test_a_subject_in_two_splits_is_named():
    check_disjoint({"train": ["S2", "S3"], "test": ["S4"]})
    with pytest.raises(ValueError, match="found S3 in train and test"):
        check_disjoint({"train": ["S2", "S3"], "val": ["S5"], "test": ["S3"]})
    with pytest.raises(ValueError, match="found S2 in train and train"):
        check_disjoint({"train": ["S2", "S2"]})


def test_a_class_missing_from_a_split_is_named():
    windows = grid(40)
    only = windows.select(windows.labels == 0)
    check_classes({"train": windows, "pair": only, "test": windows})
    with pytest.raises(ValueError, match="val: .* found none of 'freezing' .*'normal': 21"):
        check_classes({"train": windows, "val": only})


@settings(max_examples=30, deadline=None)
@given(n=st.integers(8, 200), seed=st.integers(0, 10**6))
def test_splits_of_windows_do_not_depend_on_input_order(n, seed):
    windows = grid(n, names=("a", "b", "c10", "c9"))
    parts = shuffle_split(windows, FOG, seed)
    mixed = windows.select(np.random.default_rng(seed + 1).permutation(4 * n))
    mixed = shuffle_split(mixed, FOG, seed)
    assert list(parts) == list(FOG)
    assert {name: keys(part) for name, part in parts.items()} == {
        name: keys(part) for name, part in mixed.items()
    }
    everything = [key for part in parts.values() for key in keys(part)]
    assert sorted(everything) == sorted(keys(windows))
    for name, part in parts.items():
        assert abs(len(part) - 4 * n * FOG[name] / 99) <= 1


def test_seeds_decide():
    windows = grid(300)
    a, b, c = (keys(shuffle_split(windows, FOG, seed)["test"]) for seed in (1, 1, 2))
    assert a == b != c


def test_the_published_protocol_leaks():
    windows = grid(4000)
    parts = shuffle_split(windows, FOG, seed=0)
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


def test_overlap_of_nothing_is_refused():
    with pytest.raises(ValueError, match="found none"):
        overlap(grid(5).select(np.zeros(5, bool)), grid(5))


SPLITS = {"train": ["S2"], "val": ["S3"], "pair": ["S4"], "test": ["S5"]}
SPECS = {"ecg": ECG, "ppg": PPG}


def track(codes, seconds=200):
    n = seconds * 700
    return np.repeat(codes, -(-n // len(codes)))[:n]


def wesad_folder(folder, **tracks):
    for subject in ("S2", "S3", "S4", "S5"):
        write_wesad(folder, subject, seconds=200, track=tracks.get(subject, track([1, 2, 3])))


def test_make_splits_goes_from_files_to_windows(tmp_path):
    wesad_folder(tmp_path)
    parts = make_splits(wesad, tmp_path, SPECS, 60.0, 2.0, SPLITS, source="simulated")
    assert {name: set(part.subjects) for name, part in parts.items()} == {
        name: set(subjects) for name, subjects in SPLITS.items()
    }
    for name, part in parts.items():
        assert (part.source, part.classes) == ("simulated", wesad.CLASSES)
        assert (UNLABELLED in part.labels) == (name == "pair")
    assert len(parts["pair"]) == 71 and parts["pair"].signals["ecg"].shape[1:] == (1, 6000)


def test_make_splits_checks_subjects_classes_and_names(tmp_path):
    wesad_folder(tmp_path, S3=track([1, 2, 2]))

    def split(**changed):
        return make_splits(wesad, tmp_path, SPECS, 60.0, 5.0, SPLITS | changed)

    with pytest.raises(ValueError, match="val: .* found none of 'amusement'"):
        split()
    with pytest.raises(ValueError, match="found S2 in train and val"):
        split(val=["S2"])
    with pytest.raises(FileNotFoundError, match="expected files of subject S9 of 'WESAD"):
        split(val=["S9"])
    with pytest.raises(ValueError, match="found \\['dev'\\]"):
        split(dev=["S3"])


def test_an_absent_subject_is_described_by_its_origin():
    names = [f"S{i}" for i in range(2, 12)]
    reader = SimpleNamespace(CLASSES=(), ABOUT=wesad.ABOUT, subjects=lambda folder: names)

    def message(subjects):
        with pytest.raises(FileNotFoundError) as error:
            read_windows(reader, "raw", subjects, {"ecg": ECG}, 60.0, 60.0)
        return str(error.value)

    origin = f"'{wesad.ABOUT.title}' (UCI Machine Learning Repository), licence non-commercial"
    one, two = message(["S2", "S4", "S99"]), message(["S77", "S99"])
    assert one.startswith(f"raw: expected files of subject S99 of {origin}")
    assert one.endswith("; found subjects S3, S5, S6, S7, S8, ...")
    assert two.startswith(f"raw: expected files of subjects S77, S99 of {origin}")
    assert message(["S99", *names]).endswith("; found no other subjects")
    assert message(["S99", *names[1:]]).endswith("; found subjects S2")


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
    """Whatever the dealing, no window of one split overlaps one of another in time."""
    windows = grid(300, names=("a", "b", "c"))
    parts = blocked_split(windows, {"train": 33, "val": 11, "pair": 33, "test": 22}, seed)
    for name, part in parts.items():
        for other, rest in parts.items():
            if name != other:
                assert overlap(part, rest) == 0
    assert sum(map(len, parts.values())) > 0.6 * len(windows)
