"""The map has every pair of layers once, and says where the selected one stands."""

from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import yaml
from test_losses import TINY
from test_training import cached, models  # noqa: F401 (fixtures)

from biox import ablations, notebook
from biox.case import Case
from biox.config import load_settings
from biox.files import write_json
from biox.position_map import all_places, fixed_places, save_map, thinned, train_map
from biox.report import layers
from biox.report import position_map as report

SETTINGS = load_settings(Path(__file__).parents[1] / "params.yaml")


def test_places_are_all_pairs_and_nine_of_them_fixed():
    places = all_places(4, 8)
    assert len(places) == len(set(places)) == 32
    assert fixed_places(4, 8) == [(m, l) for m in (0, 2, 3) for l in (0, 4, 7)]
    assert fixed_places(2, 1) == [(0, 0), (1, 0)]  # fewer layers, each once


@pytest.fixture(scope="module")
def saved(models, cached, tmp_path_factory):  # noqa: F811
    """Nine pairs of a toy direction: three new layers, all old layers are those of the model."""
    parts = dict.fromkeys(("pair", "val", "test"), cached)
    settings = replace(SETTINGS, bridge=replace(TINY, epochs=1), device="cpu")
    case = Case(settings, "wesad-ecg2ppg", parts, *models, m=1, l=3)
    folder = tmp_path_factory.mktemp("map")
    small = replace(case, cached=parts)
    trained = train_map(small, 0.5, [0, 1], 1)
    write_json(folder / "positions.json", {"probe": [0.1 * m for m in range(case.new.n_layers)]})
    save_map(folder, case, trained, 0.5, folder / "positions.json")
    return case, trained, folder


def test_every_pair_is_trained_and_the_fixed_ones_with_all_seeds(saved):
    case, trained, _ = saved
    n_new, n_old = case.new.n_layers, case.old.n_layers
    runs = [(t.m, t.l, t.seed) for t in trained]
    first = [(m, l) for m, l, seed in runs if seed == 0]
    assert sorted(first) == sorted((m, l) for m in range(n_new) for l in range(n_old))
    more = {(m, l) for m, l, seed in runs if seed == 1}
    assert more == {*fixed_places(n_new, n_old), (1, 3)} and len(runs) == len(first) + len(more)
    assert {t.windows for t in trained} == {12}
    assert len(thinned(case, 0.5).cached["val"]) == 12 and len(case.cached["test"]) == 24


def test_the_saved_map_says_how_the_selected_pair_does(saved):
    case, trained, folder = saved
    found = report.read_map(folder, "wesad-ecg2ppg")
    pairs = report.pair_table(found)
    assert len(pairs) == case.new.n_layers * case.old.n_layers and set(pairs["seeds"]) == {1}
    scored = {(t.m, t.l): case.score(t.probabilities) for t in trained if t.seed == 0}
    for _, row in pairs.iterrows():
        mine = scored[row["m"], row["l"]]
        assert row["balanced_accuracy"] == pytest.approx(mine)
        better = sum(other > mine + 1e-9 for other in scored.values())
        assert row["rank"] == 1 + better
    chosen = pairs[pairs["selected"]]
    assert chosen[["m", "l"]].to_numpy().tolist() == [[1, 3]]
    table = report.table2(found)
    both = [case.score(t.probabilities) for t in trained if (t.m, t.l) == (1, 3)]
    assert table.loc["selected: m1 l3", "balanced_accuracy"] == pytest.approx(np.mean(both))
    fixed = table[table.index.str.startswith("fixed")]["balanced_accuracy"]
    assert table.loc["mean of the fixed", "balanced_accuracy"] == pytest.approx(fixed.mean())
    assert table.loc["mean of the fixed", "balanced_accuracy reported"] == 48.34


def test_a_map_with_a_missing_pair_is_refused(saved, tmp_path):
    folder = saved[2]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    places = pd.read_csv(tmp_path / "places.csv")
    places.iloc[:-1].to_csv(tmp_path / "places.csv", index=False)
    with pytest.raises(ValueError, match="expected every pair of layers once"):
        report.read_map(tmp_path, "wesad-ecg2ppg")


def toy_pairs():
    rows = [(m, l) for m in range(2) for l in range(3)]
    score = [50.0, 40.0, 60.0, 55.0, 45.0, 65.0]
    return pd.DataFrame(
        {
            "variant": [f"m{m} l{l}" for m, l in rows], "m": [m for m, _ in rows],
            "l": [l for _, l in rows], "probe": [0.1] * 3 + [0.2] * 3, "cka": score,
            "fixed": True, "selected": [r == (0, 2) for r in rows], "balanced_accuracy": score,
            "val loss": [1 - s / 100 for s in score], "val agreement": [s / 100 for s in score],
            "rank": [4, 6, 2, 3, 5, 1],
        }
    )  # fmt: skip


def test_correlations_and_sentences_of_a_map_with_known_answers():
    pairs = toy_pairs()
    rho = report.correlations(pairs)["rho"]
    assert rho["CKA of m and l (eq. 5)"] == pytest.approx(1)
    assert rho["minus the loss on val, after training"] == pytest.approx(1)
    assert 0 < rho["probe score of m (eq. 4)"] < 1
    names = ["fixed: m0 l0", "mean of the fixed", "selected: m0 l2"]
    table = pd.DataFrame({"balanced_accuracy": [50.0, 52.5, 60.0], "sd": 1.0}, index=names)
    text = report.verdict_table2(table, pairs)
    assert "**The claim holds here**" in text and "+7.5 points (paper +3.7)" in text
    assert "m0 l2, has rank 2 of 6 (60.0 %); the best is m1 l2 (65.0 %)" in text
    assert "agrees best with the teacher on val, m1 l2, has rank 1 of 6" in text
    assert "does not hold" in report.verdict_table2(table.assign(sd=9.0), pairs)


def test_heat_maps_show_the_table_and_mark_the_selected_pair():
    figure = report.plot_map(toy_pairs())
    axis = figure.axes[0]
    shown = [text.get_text() for text in axis.texts]
    assert shown == ["50", "40", "60", "55", "45", "65"]
    solid = [p for p in axis.patches if p.get_linestyle() in ("-", "solid")]
    assert [(int(p.get_x()), int(p.get_y())) for p in solid] == [(2, 0)]  # l, m


def test_figure_3_draws_every_direction_and_marks_its_choice():
    selections = {
        "a": {"m": 1, "l": 0, "probe": [0.2, 0.5, 0.49], "cka": [0.3, 0.1]},
        "b": {"m": 2, "l": 1, "probe": [0.2, 0.3, 0.6], "cka": [float("nan"), 0.1]},
    }
    figure = layers.plot_figure3(selections, {"a": ("ppg", "ecg"), "b": ("eeg", "emg")})
    found = [[line.get_ydata().tolist() for line in axis.lines] for axis in figure.axes]
    assert found[0] == [[0.2, 0.5, 0.49], [0.5]] and found[1] == [[0.3, 0.1], [0.3]]
    assert found[2][1] == [0.6] and "PPG" in figure.axes[0].get_xlabel()
    margins = layers.margins(selections)
    assert margins.loc["a", "probe, next"] == 0.49 and np.isnan(margins.loc["b", "cka, next"])
    text = layers.verdict_figure3(margins)
    assert "last one in 1 of 2" in text and "In 1 of 2 directions the probe's lead" in text


def test_pages_write_where_the_pipeline_looks(monkeypatch):
    """A direction given on the command line is no part of the folder's name."""
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    for page, item, outs in (
        ("position_map", "map", stages["position_map"]["outs"]),
        ("ablate", "${item}", stages["ablate"]["do"]["outs"]),
    ):
        run = notebook.begin(page, {"direction": "wesad-ppg2ecg"})
        folder = ablations.folder("${ablations.direction}", item).as_posix()
        assert run.name_of("x") == "x" and folder in outs
