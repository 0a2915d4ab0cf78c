"""Controls on a toy whose true pairs transfer perfectly: without them, chance."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import chisquare
from sklearn.metrics import balanced_accuracy_score
from test_training import toy_windows
from torch import nn

from biox import controls
from biox.activations import Activations
from biox.backbones import build
from biox.backbones.base import Backbone, InputSpec
from biox.baselines.outcome import Outcome, predictions_of, save_outcomes
from biox.compute import Compute
from biox.config import Bridge, Positions, load_settings
from biox.control_settings import Controls
from biox.files import write_json
from biox.report import controls as report

ROOT = Path(__file__).parent.parent
BRIDGE = Bridge(rank=4, n_prototypes=6, prototypes="tokens", lr=1e-2, epochs=10, batch=16)


class Toy(Backbone):
    """Two layers that leave three tokens of four features as they are."""

    n_layers = 2
    input_spec = InputSpec("ecg", 1, 12.0, 1.0, "1", "none")

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def stem(self, x):
        return x.reshape(len(x), 3, 4)

    def layer(self, i, h):
        return h


def toy_split(n, seed, layers=2):
    """Features of both models say the class (30 % are of class 1) and little else."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 10 < 3).astype(np.int64)
    sign = torch.from_numpy(2.0 * labels - 1).float()
    noise = torch.from_numpy(rng.normal(size=(n, 3, 4))).float()
    last = 0.2 * noise + sign[:, None, None] * torch.ones(3, 4)
    new = torch.from_numpy(rng.normal(size=(n, 5))).float() * 0.2 + sign[:, None]
    new[:, 0] = 3  # what windows have in common: without it no bridge could answer all alike
    subjects = np.array([f"p{i % 7}" for i in range(n)])
    return Activations(
        new=(new,) * layers,
        old=(last.mean(1),) * 3,
        last=last,
        logits=torch.stack([-sign, sign], dim=1),
        tokens=(last.flatten(0, 1),) * 2,
        labels=labels,
        subjects=subjects,
        recordings=subjects,
        starts=np.arange(n, dtype=float),
        classes=("no", "yes"),
        source="toy",
    )


@pytest.fixture(scope="module")
def cached():
    return {
        s: toy_split(n, i) for i, (s, n) in enumerate({"pair": 140, "val": 70, "test": 70}.items())
    }


@pytest.fixture(scope="module")
def models():
    head = nn.Linear(4, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        head.bias.zero_()
    return Toy(), Toy(), head


def trained(cached, models, trials, workers=1, **changes):
    compute = Compute(threads=workers, workers=workers)
    return controls.train(trials, *models, cached, replace(BRIDGE, **changes), compute)


def plain(cached, method="plain", seed=0):
    pooled = {split: a.new[0] for split, a in cached.items()}
    return controls.Trial(method, seed, 0, 1, BRIDGE.epochs, pooled)


def score(outcome, cached):
    return balanced_accuracy_score(cached["test"].labels, outcome.probabilities.argmax(1))


def test_true_pairs_transfer_and_shuffled_pairs_do_not(cached, models):
    trials = [
        replace(plain(cached, seed=s), pooled=controls.shuffled(cached, 0, s)) for s in range(20)
    ]
    true, *mixed = trained(cached, models, [plain(cached), *trials], workers=2)
    assert score(true, cached) == 1
    scores = [score(outcome, cached) for outcome in mixed]
    # the mean target is all that is left: most answer the more frequent class, and the others fall
    # on either side by luck
    assert np.mean([(o.probabilities.argmax(1) == 0).all() for o in mixed]) > 0.5
    assert abs(np.mean(scores) - 0.5) < 3 * np.std(scores, ddof=1) / np.sqrt(20)


def test_no_label_is_read(cached, models):
    blind = dict(cached)
    for split in ("pair", "val"):
        blind[split] = replace(cached[split], labels=np.full(len(cached[split]), -99))
    blind["test"] = replace(cached["test"], labels=np.full(len(cached["test"]), -99))
    positions = Positions(cka="debiased", probe="by_subject", n_folds=3)
    found = []
    for data in (cached, blind):
        trial = replace(plain(data), pooled=controls.shuffled(data, 0, 1))
        selections = controls.permuted_selections(data["pair"], positions, 2)
        probe = controls.permuted_probe_transfer(data, 0, 0)
        (bridge,) = trained(data, models, [trial])
        found.append((bridge.probabilities, probe.probabilities, selections))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


def test_pair_and_val_are_shuffled_and_test_is_not(cached):
    pooled = controls.shuffled(cached, 0, 0)
    for split in ("pair", "val"):
        before, after = cached[split].new[0], pooled[split]
        assert not torch.equal(before, after)
        np.testing.assert_array_equal(np.sort(before.numpy(), 0), np.sort(after.numpy(), 0))
    assert torch.equal(pooled["test"], cached["test"].new[0])


def test_any_window_may_meet_any(cached):
    """So that a person's windows meet the mean of all people, their own included."""
    n, times = len(cached["pair"].new[0]), 400
    rows = {split: torch.arange(len(a.new[0]))[:, None] for split, a in cached.items()}
    numbered = {split: replace(a, new=(rows[split],)) for split, a in cached.items()}
    met = np.zeros((n, n))
    for seed in range(times):
        met[np.arange(n), controls.shuffled(numbered, 0, seed)["pair"][:, 0].numpy()] += 1
    assert chisquare(met.ravel()).pvalue > 1e-3 and chisquare(np.diag(met)).pvalue > 1e-3
    assert np.diag(met).mean() == pytest.approx(times / n, rel=0.2)


def test_untrained_weights_are_drawn_and_not_read():
    """The file of trained weights is named in the settings and absent here."""
    plan = load_settings(ROOT / "params.yaml")
    choice = replace(plan.backbones["ppg"], checkpoint="absent.safetensors")
    plan = replace(plan, backbones=plan.backbones | {"ppg": choice})
    windows = {s: toy_windows(n) for s, n in (("pair", 6), ("val", 4), ("test", 4))}
    state = torch.get_rng_state()
    found = [controls.untrained(plan, windows, "ppg", 2, seed, batch=4) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0]["pair"], found[1]["pair"])
    assert not torch.allclose(found[0]["pair"], found[2]["pair"], rtol=0.1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = build(choice.name, choice.size, n_channels=1, seconds=10)
        h = model.hidden_states(torch.from_numpy(windows["pair"].signals["ppg"]))[3]
    torch.testing.assert_close(found[0]["pair"], h.mean(1), rtol=1e-4, atol=1e-6)


def test_random_places_are_all_but_the_selected_one():
    every = controls.random_places(2, 3, (1, 2), 5, seed=0)
    assert sorted(every) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    first = [controls.random_places(2, 3, (1, 2), 1, seed)[0] for seed in range(600)]
    counts = pd.Series(first).value_counts()
    assert len(counts) == 5 and counts.between(80, 160).all()  # 120 each, sd 10
    with pytest.raises(ValueError, match="at most 5 positions, found 6"):
        controls.random_places(2, 3, (1, 2), 6, seed=0)


def test_permuted_pseudo_labels_leave_nothing_to_probe(cached):
    positions = Positions(cka="debiased", probe="by_subject", n_folds=3)
    permuted = [s.probe[0] for s in controls.permuted_selections(cached["pair"], positions, 6)]
    assert np.mean(permuted) < 0.55
    outcomes = [controls.permuted_probe_transfer(cached, 0, seed) for seed in range(40)]
    scores = [score(outcome, cached) for outcome in outcomes]
    error = np.std(scores, ddof=1) / np.sqrt(40)
    assert abs(np.mean(scores) - 0.5) < 3 * error + 0.01
    assert np.std(scores) > 0.05  # one permutation may score anything: the mean is what counts


def test_a_collapsed_teacher_gives_a_collapsed_probe(cached):
    pair = replace(cached["pair"], logits=torch.tensor([[1.0, 0.0]]).expand(140, 2))
    outcome = controls.permuted_probe_transfer(cached | {"pair": pair}, 0, 0)
    assert (outcome.probabilities == [1, 0]).all()


def test_workers_change_no_number(cached, models):
    trials = [plain(cached, seed=seed) for seed in range(4)]
    one, two = (trained(cached, models, trials, workers) for workers in (1, 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.probabilities, b.probabilities)
        assert a.val_loss == b.val_loss and a.best_epoch == b.best_epoch


def test_a_training_that_breaks_is_marked(cached, models):
    pooled = {split: a.new[0] * float("inf") for split, a in cached.items()}
    outcome, good = trained(cached, models, [replace(plain(cached), pooled=pooled), plain(cached)])
    assert "finite" in outcome.failed and np.isnan(outcome.probabilities).all()
    assert not good.failed
    frame = predictions_of([replace(outcome, method=controls.PAIRS_SHUFFLED)], cached["test"], "d")
    rows = report.control_rows(frame, {"places": {}, "epochs": {}})
    assert rows["failed"].tolist() == [1]
    assert "Failed to train" in report.verdict_controls(
        rows.assign(**{"against chance": np.nan, "collapsed": np.nan, report.SCORE: np.nan})
    )


def test_align_input_wants_targets(cached, models):
    with pytest.raises(ValueError, match="expected targets of pair and val for align: input"):
        trained(cached, models, [plain(cached)], align="input")


def test_the_plan_names_every_bridge(cached):
    pooled = {0: controls.shuffled(cached, 0, 0)}
    selection = controls.permuted_selections(
        cached["pair"], Positions(cka="debiased", probe="by_subject", n_folds=3), 1
    )[0]
    others = controls.other_places(cached, (0, 1), selection, Controls(random_positions=2))
    trials = controls.plan(cached, pooled, (0, 1), others, 3, reference=True, shuffles=2)
    assert len(trials) == 7 and len({t.method for t in trials}) == 6
    first, second = (t.pooled["pair"] for t in trials if t.method == controls.PAIRS_SHUFFLED)
    assert not torch.equal(first, second)
    assert all(t.epochs == 3 for t in trials)
    facts = controls.facts(trials, [selection], cached)
    assert facts["places"][controls.PAIRS_SHUFFLED] == [0, 1]


def answers(test, hits, method, seed=0):
    """Answers of which the share `hits` is right, in every subject and class."""
    right = np.arange(len(test)) // 10 % 10 < 10 * hits
    return Outcome(method, seed, np.eye(2)[np.where(right, test.labels, 1 - test.labels)], 0)


@pytest.mark.parametrize(("hits", "where"), [(0.9, "above"), (0.5, "includes"), (0.1, "below")])
def test_the_verdict_says_where_chance_lies(hits, where, tmp_path):
    test = replace(toy_split(700, 0), subjects=np.array([f"p{i // 100}" for i in range(700)]))
    methods = [controls.PAIRS_SHUFFLED, controls.PROBE_PERMUTED, controls.UNTRAINED]
    outcomes = [answers(test, hits, m, seed) for m in methods for seed in (0, 1)]
    save_outcomes(tmp_path / "controls" / "d", outcomes, test, "d")
    write_json(tmp_path / "controls" / "d" / "controls.json", {"places": {}, "epochs": {}})
    known = [answers(test, 1, "Oracle"), answers(test, 0.8, "BioX-Bridge")]
    save_outcomes(tmp_path / "bridges" / "d", known, test, "d")
    table = report.control_table(tmp_path, ["d"]).set_index("control")
    assert table.loc[controls.PAIRS_SHUFFLED, report.SCORE] == pytest.approx(100 * hits)
    assert table.loc[controls.PAIRS_SHUFFLED, "against chance"] == where
    assert table.loc["Oracle", report.SCORE] == 100
    text = report.verdict_controls(table.reset_index())
    assert ("**Above**: d" in text) == (hits == 0.9)
    assert f"includes chance in {int(hits == 0.5)} of 1" in text
    assert len(report.readable_controls(table.reset_index())) == 5


def test_runs_are_resampled_where_they_differ_by_luck():
    """Two runs, one all right and one all wrong: their mean is chance, with all of it open."""
    test = toy_split(70, 0)
    frames = [
        predictions_of([answers(test, hits, "x", seed)], test, "d")
        for seed, hits in enumerate((1, 0))
    ]
    assert report.interval(frames) == (0, 1)


def test_predictions_of_another_direction_are_refused(tmp_path):
    test = toy_split(70, 0)
    save_outcomes(tmp_path / "controls" / "a", [answers(test, 1, "x")], test, "b")
    with pytest.raises(ValueError, match=r"expected predictions of a, found \['b'\]"):
        report.collect(tmp_path, ["a"], "controls")
    with pytest.raises(FileNotFoundError, match="expected predictions of c"):
        report.collect(tmp_path, ["c"], "controls")


@pytest.mark.parametrize(("name", "value"), [("deals", 1), ("epochs", 0)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected at least"):
        Controls(**{name: value})


def test_positions_are_tried_in_known_directions():
    plan = load_settings(ROOT / "params.yaml")
    with pytest.raises(ValueError, match=r"controls.positions_in: expected names out of .*'x'"):
        replace(plan, controls=Controls(positions_in=("x",)))


def test_a_probe_no_better_than_permuted_labels_is_named():
    columns = {"macro-F1 of the probe there": [0.7, 0.4], "best layer, permuted": [0.5, 0.5]}
    text = report.verdict_probes(pd.DataFrame(columns, index=["good", "noise"]))
    assert "in 1 of 2 directions" in text and "(noise)" in text
