"""The benchmark measures what it says: its parts compute the same, its ratios are consistent."""

import math

import pandas as pd
import pytest
import torch

from biox.benchmark import __main__ as command
from biox.benchmark import calls, growth, results, selection, steps, together
from biox.benchmark.plan import SIX, Case, plan_of, shortest
from biox.losses import cosine_loss
from biox.training import Pairs

QUICK = plan_of("tiny", batch=2, repeats=1, windows=2, factors=(1, 2), bridges=2)


@pytest.fixture(scope="module")
def tables():
    return {"step": steps.measure(QUICK), "selection": selection.measure(QUICK)}


def values(table, measure):
    found = table[table["measure"] == measure].set_index("case")["value"]
    assert (found > 0).all() and found.map(math.isfinite).all()
    return found


def test_step_ratios_follow_from_the_seconds(tables):
    table = tables["step"]
    online, cached = values(table, "online"), values(table, "cached")
    assert list(online.index) == list(SIX)
    ratio = values(table, "online / cached")
    pd.testing.assert_series_equal(ratio[list(SIX)], online / cached, check_names=False)
    assert ratio["geometric mean"] == pytest.approx((online / cached).prod() ** (1 / 6))
    assert (values(table, "online, frugal") <= online).all()
    assert list(values(table, "cached / bare tail").index) == list(SIX)


def test_pooled_share_is_that_of_the_shapes(tables):
    share = values(tables["selection"], "pooled / all tokens")
    case = Case.of("fog-eeg2emg", "tiny")  # all layers of each model have one shape
    (n_new, d_new), (n_old, d_old) = case.new.token_shape(1), case.old.token_shape(0)
    layers = case.new.n_layers, case.old.n_layers
    all_tokens = layers[0] * n_new * d_new + layers[1] * n_old * d_old
    expected = 100 * (layers[0] * d_new + layers[1] * d_old) / all_tokens
    assert share["fog-eeg2emg"] == pytest.approx(expected)
    assert share[list(SIX)].min() <= share["all"] <= share[list(SIX)].max()


@pytest.mark.parametrize("side", ["new", "old"])
def test_once_a_layer_and_one_pass_give_the_same_features(side):
    case = Case.of("wesad-ppg2ecg", "tiny")
    backbone, x = getattr(case, side), case.windows(side, 2)
    states = range(backbone.n_layers + 1)
    slow = selection.once_a_layer(backbone, x, states)
    for a, b in zip(slow, selection.one_pass(backbone, x, states), strict=True):
        torch.testing.assert_close(a, b)


def test_online_step_is_the_cached_step():
    """One step from the signals moves a bridge as one step on what the models make of them."""
    case = Case.of("isruc-eeg2ecg", "tiny")
    x_new, x_old = case.windows("new", 3), case.windows("old", 3)
    online, cached = case.untrained(seed=1), case.untrained(seed=1)
    parts = calls.online_step(online, x_new, x_old)
    assert set(steps.NEEDED) < set(parts) and min(parts.values()) > 0
    with torch.no_grad():
        target = case.old(x_old)
    optimizer = torch.optim.Adam(cached.bridge.parameters(), lr=calls.LR)
    cosine_loss(cached.last_layer(cached.pooled(x_new)), target).backward()
    optimizer.step()
    assert (cached.bridge.B != case.untrained(seed=1).bridge.B).any()
    torch.testing.assert_close(online.bridge.B, cached.bridge.B)


def test_a_step_of_several_bridges_is_that_of_each():
    case = Case.of("fog-eeg2emg", "tiny")
    pair = case.pairs(8)
    models = [case.untrained(seed) for seed in range(3)]
    together_losses = calls.cached_step(models, pair, 8)
    singles = [calls.cached_step([model], pair, 8) for model in models]
    for _ in range(3):  # whole batches: the order of the windows does not matter
        mean = torch.cat([step() for step in singles]).mean()
        assert together_losses().mean() == pytest.approx(float(mean), abs=1e-5)


@pytest.mark.slow  # processes of their own take seconds to start
def test_growth_follows_from_its_processes():
    table = growth.measure(QUICK)
    peaks = [values(table, f"peak memory, {n} windows").item() for n in (2, 4)]
    more = table.set_index("measure")["value"]["more memory, most / fewest windows"]
    assert more == pytest.approx(100 * (peaks[1] / peaks[0] - 1))
    disk = [values(table, f"last layers on disk, {n} windows").item() for n in (2, 4)]
    assert 1.9 < disk[1] / disk[0] <= 2  # a header beside the numbers


def test_training_on_stored_rows_tells_memory_and_time(tmp_path):
    old = Case.of(QUICK.growth, "tiny").old
    shape = (4, *old.token_shape(old.n_layers))
    calls.store(tmp_path / "last.npy", torch.randn(shape))
    peak, seconds = growth._train(QUICK, tmp_path / "last.npy", shape, torch.get_num_threads())
    assert peak > 1e8 and 0 < seconds < 60


def test_both_kinds_of_tail_are_trained_together():
    ratio = values(together.measure(QUICK), "together / one after another")
    assert list(ratio.index) == ["deep", "short"]


def test_stored_rows_are_what_was_stored(tmp_path):
    last = torch.randn(5, 3, 2)
    calls.store(tmp_path / "last.npy", last)
    rows = calls.stored(tmp_path / "last.npy", (5, 3, 2))
    assert len(Pairs(torch.zeros(5, 1), rows).target) == 5
    torch.testing.assert_close(rows[torch.tensor([4, 0])], last[[4, 0]])
    torch.testing.assert_close(torch.cat(list(rows.split(2))), last)


def test_numbers_are_judged_by_their_targets(tmp_path, tables):
    row = results.row
    measured = results.rows_of(
        [
            row("step", "isruc-eeg2ecg", "online / cached", 2.5, "x"),
            row("step", "fog-eeg2emg", "online / cached", 2.5, "x"),
            row("step", "isruc-eeg2ecg", "cached / bare tail", 1.3, "x"),
            row("selection", "isruc-eeg2ecg", "pooled / all tokens", 0.5, "%"),
        ]
    )
    table = results.judged(measured)
    assert list(table["verdict"]) == ["pass", "miss", "miss", ""]
    assert list(table["target"]) == ["at least 2", "at least 300", "at most 1.25", ""]
    assert set(results.judged(measured, "tiny")["verdict"]) == {""}
    results.save(table, tmp_path / "benchmark.csv", "a note")
    read = pd.read_csv(tmp_path / "benchmark.csv", keep_default_na=False)
    assert list(read["verdict"]) == ["pass", "miss", "miss", ""]
    assert "a note" in (tmp_path / "benchmark.md").read_text()


def test_every_target_is_measured(tables):
    measured = set(pd.concat(tables.values())["measure"])
    elsewhere = ("memory", "power", "together")  # parts that are measured above
    for measure, _ in results.TARGETS:
        assert measure in measured or any(word in measure for word in elsewhere)


def test_command_writes_its_table(tmp_path, capsys):
    out = tmp_path / "benchmark.csv"
    told = ["--size", "tiny", "--parts", "selection", "--directions", "wesad-ppg2ecg"]
    command.main([*told, "--repeats", "1", "--out", str(out)])
    assert "once a layer / one pass" in capsys.readouterr().out
    table = pd.read_csv(out)
    assert (table["value"] > 0).all() and set(table["case"]) == {"wesad-ppg2ecg", "all"}


def test_figure_draws_all_directions(tables):
    grown = [
        results.row("growth", "x", f"{what} {n} windows", value, unit)
        for n in (2, 4)
        for what, value, unit in (("epoch of", n, "s"), ("peak memory,", 100.0, "MB"))
    ]
    table = pd.concat([tables["step"], results.rows_of(grown)])
    left, right = results.plot(table).axes
    assert len(left.patches) == 3 * len(SIX) and len(right.lines) == 3


def test_shortest_takes_no_more_time_than_told():
    calls_made = []
    assert 0 <= shortest(lambda: calls_made.append(1), repeats=5, seconds=10.0) < 1
    assert len(calls_made) == 5
    shortest(lambda: calls_made.append(1), repeats=5, seconds=0.0)
    assert len(calls_made) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"directions": ("a-b",)}, "direction: expected one of"), ({"batch": 0}, "at least 1")],
)
def test_impossible_plans_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan_of("tiny", **changes)
    with pytest.raises(ValueError, match="size: expected one of"):
        plan_of("huge")
