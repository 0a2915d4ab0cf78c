"""Audits on synthetic windows whose leak is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from biox import audits
from biox.data.windows import Windows
from biox.experiment import Paths
from biox.report.leaks import inflation, readable_inflation, verdict_inflation

FRACTIONS = {"train": 5, "val": 2, "test": 3}


def long_windows(n_subjects=6, n=120, step=0.3, seed=0):
    """Windows of 3 s, labelled in bouts of 10 windows that say nothing of one another."""
    rng = np.random.default_rng(seed)
    bouts = np.concatenate([rng.permutation(np.arange(n // 10) % 2) for _ in range(n_subjects)])
    subjects = np.repeat([f"p{i}" for i in range(n_subjects)], n)
    return Windows(
        signals={"eeg": np.zeros((n_subjects * n, 1, 30), np.float32)},
        rates={"eeg": 10.0},
        units={"eeg": "1"},
        channels={"eeg": ("x",)},
        labels=np.repeat(bouts, 10).astype(np.int64),
        subjects=subjects,
        recordings=subjects,
        starts=np.tile(step * np.arange(n), n_subjects),
        classes=("no", "yes"),
        source="toy",
    )


def table_of(features, windows, deals=6):
    features = torch.from_numpy(features.astype(np.float32))
    predictions, dealt = audits.deal_out(
        "toy", features, windows, audits.PROTOCOLS, FRACTIONS, deals
    )
    return inflation(predictions, dealt).set_index(["head", "protocol"])


def test_a_leak_through_overlap_inflates_and_blocks_take_it_away():
    """Features drift with time and know no label: whoever remembers the neighbour knows it all."""
    windows, rng = long_windows(), np.random.default_rng(1)
    drift = rng.normal(size=(6, 120, 12)).cumsum(axis=1).reshape(720, 12)
    table = table_of(drift, windows)
    near = table.loc["nearest neighbour"]
    assert near.loc[audits.SHUFFLED, "balanced accuracy (%)"] > 85
    assert near.loc[audits.BLOCKED, "balanced accuracy (%)"] < 65
    assert near.loc[audits.BLOCKED, "inflation"] > 20
    assert (near["inflation low"].dropna() > 0).all()
    assert near["overlapping (%)"].tolist() == [pytest.approx(100, abs=1), 0, 0]
    assert np.isnan(near.loc[audits.SHUFFLED, "inflation"])


def test_without_a_leak_there_is_no_inflation():
    """Features of a window know its label and nothing of their neighbours or their person."""
    windows, rng = long_windows(), np.random.default_rng(2)
    table = table_of(rng.normal(size=(720, 5)) + windows.labels[:, None], windows, deals=10)
    rest = table["inflation"].dropna()
    assert len(rest) == 4 and (rest.abs() < 3).all()
    assert (table["balanced accuracy (%)"] > 70).all()


@pytest.mark.filterwarnings("ignore:Precision loss")  # all deals of one protocol score 100 %
def test_a_leak_through_persons_shows_against_subjects_alone():
    """Every person has a direction of their own in which the classes differ."""
    windows, rng = long_windows(), np.random.default_rng(3)
    own = np.repeat(rng.normal(size=(6, 40)), 120, axis=0)
    features = own * (2 * windows.labels[:, None] - 1) + 0.05 * rng.normal(size=(720, 40))
    table = table_of(features, windows).loc["nearest neighbour"]
    assert abs(table.loc[audits.BLOCKED, "inflation"]) < 1
    assert table.loc[audits.BY_SUBJECT, "inflation"] > 25
    shown = readable_inflation(table.reset_index().assign(head="nearest neighbour"))
    assert shown["shuffling adds [95 %]"].iloc[0] == ""
    text = verdict_inflation(table.reset_index().assign(head="nearest neighbour"))
    assert text.count("(**not** shown to inflate)") == 1


def test_data_sets_of_other_classes_stand_in_one_file():
    two, rng = long_windows(), np.random.default_rng(4)
    three = replace(two, labels=(np.arange(720) // 10 % 3), classes=("a", "b", "c"))
    features = torch.from_numpy(rng.normal(size=(720, 4)).astype(np.float32))
    found = [
        audits.deal_out(name, features, windows, audits.PROTOCOLS, FRACTIONS, 2)
        for name, windows in (("two", two), ("three", three))
    ]
    together = inflation(*(pd.concat(parts) for parts in zip(*found, strict=True)))
    alone = pd.concat([inflation(*parts) for parts in found], ignore_index=True)
    pd.testing.assert_frame_equal(together, alone)
    assert together["balanced accuracy (%)"][:6].mean() == pytest.approx(50, abs=6)
    assert together["balanced accuracy (%)"][6:].mean() == pytest.approx(100 / 3, abs=6)


def test_subjects_are_dealt_out_whole():
    windows = long_windows()
    parts = audits.subject_split(windows, FRACTIONS, 0)
    owners = [set(part.subjects) for part in parts.values()]
    assert [len(o) for o in owners] == [3, 1, 2] and len(set.union(*owners)) == 6
    assert sum(len(part) for part in parts.values()) == len(windows)
    turned = windows.select(np.arange(len(windows))[::-1])
    assert set(audits.subject_split(turned, FRACTIONS, 0)["test"].subjects) == owners[2]


def test_one_row_of_features_a_window():
    with pytest.raises(ValueError, match="a row of features for each of 720 windows, found 2"):
        audits.deal_out("toy", torch.zeros(2, 3), long_windows(), audits.PROTOCOLS, FRACTIONS, 2)


def test_paired_people_stay_without_labels(tmp_path, monkeypatch):
    """There is no file of pair; whoever asks for it fails."""
    monkeypatch.setattr(audits, "PATHS", Paths(data=tmp_path))
    for i, split in enumerate(("train", "val", "test")):
        part = long_windows(2, seed=i)
        part = replace(part, subjects=np.char.add(part.subjects, split))
        part.save(tmp_path / "windows" / "toy" / f"{split}.safetensors")
    windows = audits.labelled_windows("toy", "eeg")
    assert len(windows) == 3 * 240 and len(set(windows.subjects)) == 6
