"""Pretraining on problems whose answer is known."""

import numpy as np
import pytest
import torch

from biox.backbones import build
from biox.backbones.pretraining import KnownWindows, common_energy, pretrain

SETTINGS = dict(epochs=10, batch=16, lr=3e-3, mask=0.3, reconstruction=0.3, seed=0)


@pytest.fixture(scope="module")
def corpora():
    """Sines of two lengths; their frequency can be seen, the second parameter cannot."""
    rng = np.random.default_rng(0)
    found = []
    for seconds in (4, 8):
        hz = rng.uniform(0.8, 2.5, 160)
        t = np.arange(seconds * 125) / 125
        x = np.sin(2 * np.pi * hz[:, None] * t + rng.uniform(0, 6, (160, 1)))
        targets = np.stack([hz, rng.normal(size=160)], axis=1)
        x, targets = (torch.from_numpy(values).float() for values in (x[:, None], targets))
        found.append(KnownWindows(x, targets, ("hz", "nothing")))
    return found


def trained(corpora, **changes):
    torch.manual_seed(0)
    backbone = build("papagei", "tiny", seconds=8)
    return backbone, *pretrain(backbone, corpora, **{**SETTINGS, "common": 0.3, **changes})


def test_it_learns_what_windows_show_and_not_what_they_do_not(corpora):
    backbone, losses, r2 = trained(corpora)
    assert r2[0] > 0.6 and r2[1] < 0.3
    assert losses.shape == (10, 3) and losses[-1, 1] < losses[0, 1]
    assert not backbone.training and not any(p.requires_grad for p in backbone.parameters())


def test_the_seed_and_the_weights_of_the_terms_decide(corpora):
    few = [KnownWindows(c.x[:40], c.targets[:40], c.names) for c in corpora]
    first, losses, _ = trained(few, epochs=1)
    second, again, _ = trained(few, epochs=1)
    assert np.array_equal(losses, again)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    _, other, _ = trained(few, epochs=1, seed=1)
    _, weighted, _ = trained(few, epochs=1, weights={"hz": 5.0})
    assert not np.array_equal(losses, other) and not np.array_equal(losses, weighted)
    much, nothing = (trained(few, epochs=4, common=c)[1][-1, 2] for c in (3.0, 0.0))
    assert much < 0.6 * nothing  # of what all windows have in common


def test_what_cannot_be_trained_is_refused(corpora):
    with pytest.raises(ValueError, match="more windows than a batch of 999"):
        trained(corpora, batch=999)
    with pytest.raises(FloatingPointError, match="expected finite losses, .* at learning rate 1e"):
        trained(corpora, lr=1e30)


def test_common_energy_is_that_of_the_mean():
    rng = torch.Generator().manual_seed(0)
    apart = torch.randn(50, 6, 4, generator=rng)
    apart -= apart.mean(dim=(0, 1))
    common = torch.tensor([3.0, 0.0, -1.0, 2.0])
    assert common_energy(apart).item() == pytest.approx(0, abs=1e-6)
    expected = (common**2).mean() / ((common**2).mean() + (apart**2).mean())
    assert common_energy(apart + common).item() == pytest.approx(expected.item(), rel=1e-5)
