"""Ablations: what is trained, on which windows, and that tables and pictures say the same."""

from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from test_losses import TINY
from test_training import cached, models  # noqa: F401 (fixtures)

from biox import ablations
from biox.ablation_settings import Ablations
from biox.ablations import ABLATIONS, Variant, select, share_rows, train
from biox.case import Case
from biox.config import load_settings
from biox.embeddings import representations
from biox.report import ablations as report
from biox.report import embeddings
from biox.report.results import save_direction
from biox.training import train_seeds

SETTINGS = load_settings(Path(__file__).parents[1] / "params.yaml")
SUBJECTS = np.repeat(["a", "b", "c"], [40, 20, 3])


@pytest.fixture(scope="module")
def case(models, cached):  # noqa: F811
    parts = dict.fromkeys(("pair", "val", "test"), cached)
    settings = replace(SETTINGS, bridge=replace(TINY, epochs=2), device="cpu")
    return Case(settings, "wesad-ecg2ppg", parts, *models, m=5, l=2)


@pytest.fixture(scope="module")
def trained(case):
    variants = [Variant("2", {"rank": 2}), Variant("8", {"rank": 8}), Variant("0.5", share=0.5)]
    return train(case, [(v, seed) for v in variants for seed in (3, 1)])


def test_every_ablation_is_valid_and_holds_the_default_once():
    for name, variants in ABLATIONS.items():
        made = variants(SETTINGS.ablations)
        assert len({v.name for v in made}) == len(made) > 1
        case = Case(SETTINGS, "", {}, None, None, None, 1, 7)
        assert sum(v.is_default(case) for v in made) == 1 or name in ("rank", "n_prototypes")
        for variant in made:
            variant.settings(SETTINGS.bridge)
    assert {f"{k}" for k in ABLATIONS} <= set(vars(Ablations()))  # a key of params.yaml each


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": (0.5, 1.5)}, "share: expected shares above 0 and at most 1"),
        ({"map_share": 0.0}, "map_share: expected shares above 0"),
        ({"rank": (4, 4)}, "rank: expected distinct values"),
        ({"n_prototypes": (0, 4)}, "n_prototypes: expected sizes above 0"),
        ({"loss": {"mae": ()}}, "loss.mae: expected distinct places"),
        ({"map_seeds": 0}, "map_seeds: expected at least 1"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Ablations(**values)


def test_shares_are_nested_seeded_and_fair_to_every_subject():
    drawn = {share: share_rows(SUBJECTS, share, 7) for share in (0.05, 0.2, 0.5, 1.0)}
    for small, large in zip(list(drawn), list(drawn)[1:], strict=False):
        assert set(drawn[small]) < set(drawn[large])
    assert drawn[1.0].tolist() == list(range(63))
    assert pd.Series(SUBJECTS[drawn[0.2]]).value_counts().to_dict() == {"a": 8, "b": 4, "c": 1}
    assert (share_rows(SUBJECTS, 0.2, 7) == drawn[0.2]).all()
    assert set(share_rows(SUBJECTS, 0.2, 8)) != set(drawn[0.2])


def test_selected_windows_keep_all_that_belongs_to_them(cached):  # noqa: F811
    rows = np.array([3, 7, 20])
    kept = select(cached, rows)
    assert len(kept) == 3 and kept.labels.tolist() == cached.labels[rows].tolist()
    assert kept.subjects.tolist() == cached.subjects[rows].tolist()
    assert torch.equal(kept.last, cached.last[rows]) and torch.equal(
        kept.logits, cached.logits[rows]
    )
    for name in ("new", "old"):
        for x, y in zip(getattr(kept, name), getattr(cached, name), strict=True):
            assert torch.equal(x, y[rows])


def test_bridges_of_an_ablation_are_those_trained_alone(case, trained):
    whole = [t for t in trained if t.variant.share == 1]
    assert [(t.variant.name, t.seed) for t in trained] == [
        (name, seed) for name in ("2", "8", "0.5") for seed in (3, 1)
    ]
    rest = (case.new, case.old, case.head)
    for t in whole:
        settings = t.variant.settings(case.settings.bridge)
        alone = train_seeds(*rest, case.cached, 5, 2, settings, [t.seed])[0]
        np.testing.assert_allclose(t.probabilities, alone.probabilities, atol=1e-4)
        np.testing.assert_allclose(t.fit.val_loss, alone.fit.val_loss, rtol=1e-4)
        assert t.cosine == pytest.approx(alone.cosine, rel=1e-4)
    for t in trained[4:]:
        rows = share_rows(case.cached["pair"].subjects, 0.5, t.seed)
        half = case.cached | {"pair": select(case.cached["pair"], rows)}
        alone = train_seeds(*rest, half, 5, 2, case.settings.bridge, [t.seed])[0]
        np.testing.assert_allclose(t.probabilities, alone.probabilities, atol=1e-4)
        assert t.windows == len(rows) == 12


def test_other_losses_and_places_learn_what_they_name(case, monkeypatch):
    torch.manual_seed(1)
    targets = {s: torch.randn(24, *case.old.token_shape(2)) for s in ("pair", "val")}
    monkeypatch.setattr(Case, "targets", lambda self: targets)
    variant = Variant("mae, input", {"loss": "mae", "align": "input"})
    (found,) = train(case, [(variant, 0)])
    settings = variant.settings(case.settings.bridge)
    args = (case.new, case.old, case.head, case.cached, 5, 2, settings, [0])
    alone = train_seeds(*args, targets=targets)[0]
    np.testing.assert_allclose(found.fit.val_loss, alone.fit.val_loss, rtol=1e-4)
    assert found.fit.val_loss[0] == pytest.approx(targets["val"].abs().mean().item(), rel=1e-4)


def test_no_number_depends_on_how_many_train_at_a_time(case, trained):
    one_by_one = case.settings.override("compute", {"threads": 1, "workers": 1})
    again = train(replace(case, settings=one_by_one), [(t.variant, t.seed) for t in trained])
    for a, b in zip(trained, again, strict=True):
        assert a.fit == b.fit and (a.probabilities == b.probabilities).all()


def test_the_default_is_not_trained_again(case, tmp_path):
    rank = case.settings.bridge.rank
    default, other = Variant(str(rank), {"rank": rank}), Variant("1", {"rank": 1})
    args = (case.new, case.old, case.head, case.cached, 5, 2, case.settings.bridge, [4, 6])
    results = train_seeds(*args)
    save_direction(tmp_path, results, pd.DataFrame({"method": []}), {})
    curves = pd.read_csv(tmp_path / "curves.csv")
    curves.loc[curves["seed"] == 6, "best"] = 1  # a mark that no training would leave
    curves.to_csv(tmp_path / "curves.csv", index=False)
    runs = [(other, 4), (default, 6), (default, 4), (default, 5)]
    found = train(case, runs, at_hand=tmp_path)
    assert [(t.variant, t.seed) for t in found] == runs
    for t, result in ((found[1], results[1]), (found[2], results[0])):
        np.testing.assert_allclose(t.probabilities, result.probabilities, rtol=1e-5)
        np.testing.assert_allclose(t.fit.val_loss, result.fit.val_loss, rtol=1e-6)
        assert t.cosine == pytest.approx(result.cosine, rel=1e-5)
        assert t.n_parameters == result.model.bridge.n_parameters and t.windows == 24
    assert found[1].fit.best_epoch == 1
    again = train(case, [runs[0], runs[3]])
    for t, trained_now in zip((found[0], found[3]), again, strict=True):
        assert t.fit == trained_now.fit


@pytest.fixture(scope="module")
def saved(case, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rank")
    ablations.save(folder, case, trained)
    return folder


def test_the_table_follows_from_the_predictions(saved, case, trained):
    table = report.score_table(report.read(saved, "wesad-ecg2ppg"))
    assert list(table.index) == ["2", "8", "0.5"]
    labels = case.cached["test"].labels
    for name, row in table.iterrows():
        runs = [t for t in trained if t.variant.name == name]
        expected = [balanced_accuracy_score(labels, t.probabilities.argmax(1)) for t in runs]
        assert row["balanced_accuracy"] == pytest.approx(100 * np.mean(expected))
        assert row["sd"] == pytest.approx(100 * np.std(expected, ddof=1))
        assert row["parameters"] == runs[0].n_parameters
    assert table["default"].tolist() == [False, TINY.rank == 8, False]


def test_unfinished_or_foreign_results_are_refused(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="about.json"):
        report.read(tmp_path, "wesad-ecg2ppg")
    with pytest.raises(ValueError, match="expected predictions of fog-eeg2emg"):
        report.read(saved, "fog-eeg2emg")
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    runs = pd.read_csv(tmp_path / "runs.csv")
    runs.iloc[1:].to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(ValueError, match="different trainings"):
        report.read(tmp_path, "wesad-ecg2ppg")


def table(scores, default, parameters, sd=1.0, index=None):
    n = len(scores)
    return pd.DataFrame(
        {
            "balanced_accuracy": scores, "sd": sd, "low": np.array(scores) - 3,
            "high": np.array(scores) + 3, "parameters": parameters, "windows": parameters,
            "default": [i == default for i in range(n)], "seeds": 3,
            "collapsed": [3] + [0] * (n - 1),
        },
        index=index or [str(2**i) for i in range(n)],
    )  # fmt: skip


def test_figure_4_draws_the_table():
    one = table([40.0, 60.0, 55.0], 2, [100, 200, 400])
    figure = report.plot_figure4(one, one, one)
    for axis in figure.axes:
        curve = next(line for line in axis.lines if line.get_marker() == "o")
        assert curve.get_xdata().tolist() == [100, 200, 400]
        assert curve.get_ydata().tolist() == [40, 60, 55]
        star = next(line for line in axis.lines if line.get_marker() == "*")
        assert (star.get_xdata().tolist(), star.get_ydata().tolist()) == ([400], [55])
    figure = report.plot_variants([one], ["loss"])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["1", "2", "4"]


def test_sentences_say_what_the_table_says():
    one = table([40.0, 60.0, 55.0], 2, [100, 200, 400])
    shares = table([40.0, 60.0, 55.0], 2, [1, 2, 4], index=["0.05", "0.2", "1"])
    text = report.verdict_figure4(one, one, shares)
    assert "rank 2 (60.0 %), 5.0 points above the default 4: more than twice" in text
    assert "a peak as in the paper, at 200 parameters" in text and "5.0 points are won" in text
    assert "**Collapsed** with this rank: 1 (3 of 3)" in text
    assert "**not more** than twice" in report.best_sentence(one.assign(sd=4.0), "rank")
    flat = table([40.0, 60.0, 59.0], 2, [100, 200, 400])
    assert "no clear peak" in report.peak_sentence(flat, "rank")
    rising = report.verdict_figure4(*[table([40.0, 50.0, 55.0], 2, [1, 2, 4])] * 2, shares)
    assert "**no** peak" in rising and "rank 4 (55.0 %), the default" in rising


def test_representations_of_a_perfect_bridge_are_the_true_ones(case, tmp_path):
    (result,) = case.trained([0])
    result.model.save(tmp_path)
    frame = representations(case, tmp_path)
    ablation = frame[frame["which"] == "bridged"].filter(regex=r"^h \d+$").to_numpy()
    with torch.no_grad():
        logits = case.head(torch.tensor(ablation, dtype=torch.float32)).softmax(1)
    np.testing.assert_allclose(logits, result.probabilities, atol=1e-5)
    true = frame[frame["which"] == "true"]
    perfect = pd.concat([true, true.assign(which="bridged")], ignore_index=True)
    points, shares = embeddings.projected(perfect)
    halves = [points[points["which"] == kind][["axis 1", "axis 2"]] for kind in embeddings.KINDS]
    np.testing.assert_allclose(*halves)
    centred = true.filter(regex=r"^h \d+$").to_numpy()
    values = np.linalg.svd(centred - centred.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(shares, values[:2] / values.sum(), rtol=1e-5)
    assert "cosine of 1.00" in embeddings.verdict(perfect)
    assert "spread 1.0 times" in embeddings.verdict(perfect)
    figure = embeddings.plot(points, shares, {"true": "t", "bridged": "b"})
    drawn = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(drawn, halves[0])
