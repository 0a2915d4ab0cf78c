"""Bridges that train together are those that train alone."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_losses import TINY
from test_training import cached, models  # noqa: F401 (fixtures)

from biox.agreement import best_epoch
from biox.bridge import BridgedModel, PrototypeBridge
from biox.compute import Compute
from biox.losses import LOSSES, Objective
from biox.rows import StoredRows, key_of, write_rows
from biox.stacking import BridgeStack, StackedTraining
from biox.training import Pairs, fit_bridge, fit_bridges, initial_bridge, predict, train_seeds

SIZES = [(8, 10), (8, 10), (3, 10), (8, 24), (1, 1)]  # rank and prototypes, one bridge each
SEEDS = [4, 0, 4, 2, 7]


def bridged(models, cached, sizes=SIZES, seeds=SEEDS, m=5, l=2, reshaped=False):  # noqa: F811
    new, old, head = models
    shapes, tokens = (cached.new[m].shape[1], old.token_shape(l)), cached.tokens[l]
    return [
        BridgedModel(new, old, initial_bridge(*shapes, *size, seed, tokens, reshaped), head, m, l)
        for size, seed in zip(sizes, seeds, strict=True)
    ]


def halves(cached, target=None):  # noqa: F811
    target = cached.last if target is None else target
    return [Pairs(cached.new[5][rows], target[rows]) for rows in (slice(0, 14), slice(14, 24))]


@pytest.mark.parametrize("at_most", [None, 1, 16_000])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_bridges_of_any_sizes_train_together_as_alone(models, cached, loss, at_most):  # noqa: F811
    """By turns of one and of two bridges, too; 14 windows in batches of 6 leave a short one."""
    how, objective = (halves(cached), 1e-2, 3, 6), Objective(loss)
    (pair, val), *rest = how
    together, alone = bridged(models, cached), bridged(models, cached)
    compute = Compute(at_most=at_most)
    fits = fit_bridges(together, pair, val, *rest, SEEDS, objective, compute=compute)
    for ours, fit, model, seed in zip(together, fits, alone, SEEDS, strict=True):
        expected = fit_bridge(model, pair, val, *rest, seed, objective)
        np.testing.assert_allclose(fit.train_loss, expected.train_loss, rtol=1e-4)
        np.testing.assert_allclose(fit.val_loss, expected.val_loss, rtol=1e-4)
        assert fit.best_epoch == expected.best_epoch
        with torch.no_grad():
            found, wanted = (predict(m, val.pooled) for m in (ours, model))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_each_bridge_keeps_its_own_best_epoch(models, cached):  # noqa: F811
    """Val windows with targets of noise: what is best there comes at different times."""
    pair, _ = halves(cached)
    val = halves(cached, torch.randn(cached.last.shape))[1]
    seeds = list(range(8))
    models = bridged(models, cached, [(8, 10)] * 8, seeds)
    fits = fit_bridges(models, pair, val, 3e-2, 6, 6, seeds)
    assert len({fit.best_epoch for fit in fits}) > 1
    for model, fit in zip(models, fits, strict=True):
        assert fit.best_epoch == best_epoch(fit.val_agreement, fit.val_loss)
        own = StackedTraining([model], pair, val, 1e-2, 6, [0]).mean_losses(val)
        np.testing.assert_allclose(own, fit.val_loss[fit.best_epoch], rtol=1e-5)


@pytest.mark.parametrize("reshaped", [False, True])
@pytest.mark.parametrize("width", [4, 64])  # few or many features: two orders of the products
def test_a_stack_writes_what_its_bridges_write(reshaped, width):
    torch.manual_seed(0)
    bridges = [PrototypeBridge(12, width, 7, r, p, reshaped) for r, p in ((5, 9), (2, 20), (6, 1))]
    for bridge in bridges:
        torch.nn.init.normal_(bridge.B)
    pooled = torch.randn(3, 4, 12)
    expected = torch.stack([b(x) for b, x in zip(bridges, pooled, strict=True)])
    torch.testing.assert_close(BridgeStack(bridges)(pooled), expected, rtol=1e-4, atol=1e-4)


def test_what_fills_a_stack_up_never_learns():
    torch.manual_seed(0)
    bridges = [PrototypeBridge(12, 8, 7, 2, 3), PrototypeBridge(12, 8, 7, 4, 5)]
    stack = BridgeStack(bridges)
    optimizer = torch.optim.Adam(stack.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        (stack(torch.randn(2, 6, 12)) - 1).square().sum().backward()
        optimizer.step()
    assert stack.A[0, 2:].abs().max() == 0 and stack.prototypes[0, :, 3:].abs().max() == 0
    assert stack.B[0, :, 2:].abs().max() == 0 and stack.B[0, 21:].abs().max() == 0
    assert stack.B[0, :21, :2].abs().min() > 0


@pytest.mark.parametrize("loss", list(LOSSES))
def test_losses_of_several_batches_are_those_of_each(loss):
    torch.manual_seed(0)
    bridged, target = torch.randn(3, 5, 7, 4), torch.randn(3, 5, 7, 4)
    expected = torch.stack([LOSSES[loss](x, y) for x, y in zip(bridged, target, strict=True)])
    torch.testing.assert_close(LOSSES[loss](bridged, target), expected)


def test_a_step_computes_bridge_and_tail_alone(models, cached):  # noqa: F811
    """No frozen weight gets a gradient, and no layer before l, or with align: input any, runs."""
    new, old, _ = models
    pair, val = halves(cached)
    rows = torch.arange(6).expand(len(SEEDS), -1)
    training = StackedTraining(bridged(models, cached, l=3), pair, val, 1e-2, 6, SEEDS)
    seen = []
    hooks = [
        part.register_forward_hook(lambda part, *_: seen.append(part))
        for backbone in (new, old)
        for part in backbone.modules()
    ]
    training.step(rows)
    ran = {id(part) for part in seen}
    seen.clear()
    with torch.no_grad():
        old.layer(3, torch.randn(6, *old.token_shape(3)))
    assert ran and ran <= {id(part) for part in seen}
    target = torch.randn(24, *old.token_shape(3))
    at_input = (1e-2, 6, SEEDS, Objective("cosine", "input"))
    training = StackedTraining(bridged(models, cached, l=3), *halves(cached, target), *at_input)
    seen.clear()
    training.step(rows)
    assert not seen
    assert all(p.grad is None for model in (new, old) for p in model.parameters())
    for hook in hooks:
        hook.remove()


def test_targets_need_not_be_in_memory(models, cached, tmp_path):  # noqa: F811
    half, key = cached.last.half().float(), key_of({})
    write_rows(tmp_path / "last.npy", half, "float16", key)
    stored = StoredRows.open(tmp_path / "last.npy", "float16", tuple(half.shape), key)
    fits = []
    for target in (half, stored):
        pairs = Pairs(cached.new[5], target).to("cpu")
        fits.append(fit_bridges(bridged(models, cached), pairs, pairs, 1e-2, 2, 8, SEEDS))
    assert fits[0] == fits[1]


def test_seeds_train_together_as_by_themselves(models, cached):  # noqa: F811
    parts = dict.fromkeys(("pair", "val", "test"), cached)
    settings = replace(TINY, epochs=2)
    threads = torch.get_num_threads()
    together = train_seeds(*models, parts, 5, 2, settings, [3, 1])
    turns = train_seeds(*models, parts, 5, 2, settings, [3, 1], compute=Compute(at_most=1))
    alone = [train_seeds(*models, parts, 5, 2, settings, [seed])[0] for seed in (3, 1)]
    for ours, others in ((together, alone), (turns, alone)):
        for a, b in zip(ours, others, strict=True):
            np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-4)
            assert (a.seed, a.fit.best_epoch) == (b.seed, b.fit.best_epoch)
            assert a.cosine == pytest.approx(b.cosine, rel=1e-4)
    one = Compute(threads=1)
    train_seeds(*models, parts, 5, 2, settings, [3], compute=one)
    assert torch.get_num_threads() == threads


def test_what_cannot_be_stacked_is_refused(models, cached):  # noqa: F811
    pair, val = halves(cached)
    both = bridged(models, cached)
    with pytest.raises(ValueError, match="a seed for each, found 5 models and 1 seeds"):
        fit_bridges(both, pair, val, 1e-2, 1)
    with pytest.raises(ValueError, match="found 0 models"):
        fit_bridges([], pair, val, 1e-2, 1, seeds=[])
    mixed = both[:1] + bridged(models, cached, SIZES[:1], SEEDS[:1], l=3)
    with pytest.raises(ValueError, match="share the old model, m and l, found 2 places"):
        fit_bridges(mixed, pair, val, 1e-2, 1, seeds=[0, 1])
    other = PrototypeBridge(12, 8, 7, 2, 3), PrototypeBridge(12, 8, 6, 2, 3)
    with pytest.raises(ValueError, match="share d_m, N_l, d_l and layout"):
        BridgeStack(other)


def test_half_precision_is_near_and_off_unless_asked_for(models, cached):  # noqa: F811
    pair, val = halves(cached)
    fits = {}
    for autocast in (False, True):
        made = bridged(models, cached, SIZES[:4], SEEDS[:4])
        compute = Compute(autocast=autocast)
        fits[autocast] = fit_bridges(made, pair, val, 1e-3, 2, 6, SEEDS[:4], compute=compute)
    for plain, half in zip(fits[False], fits[True], strict=True):
        assert plain != half
        np.testing.assert_allclose(half.val_loss, plain.val_loss, rtol=0.02)


@pytest.mark.slow
def test_a_compiled_tail_computes_the_same(models, cached):  # noqa: F811
    pair, val = halves(cached)
    plain, compiled = (
        fit_bridge(
            bridged(models, cached)[0], pair, val, 1e-2, 2, 7, compute=Compute(compile=compile)
        )
        for compile in (False, True)
    )
    np.testing.assert_allclose(compiled.train_loss, plain.train_loss, rtol=1e-4)


def test_a_look_at_losses_keeps_no_batch(models, cached, monkeypatch):  # noqa: F811
    """Else memory would grow with the number of windows."""
    monkeypatch.setattr("biox.stacking.EVALUATED", 3)
    pair, val = halves(cached)
    stack = StackedTraining(bridged(models, cached), pair, val, 1e-2, 6, SEEDS)
    compute, made, alive = stack._bridged, [], []

    def watched(pooled):
        found = compute(pooled)
        made.append(weakref.ref(found))
        alive.append(sum(one() is not None for one in made))
        return found

    monkeypatch.setattr(stack, "_bridged", watched)
    stack.mean_losses(pair)
    stack.examine()
    assert len(alive) == 5 + 4 and max(alive) <= 2
