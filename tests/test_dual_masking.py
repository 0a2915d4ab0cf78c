"""Masked pretraining: masks, what a masked window can tell, the loss, and going on after a kill."""

import numpy as np
import pytest
import torch
from fill import fill, windows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from biox.backbones import build
from biox.backbones.pretraining import (
    DualMask,
    MaskedModel,
    pretrain_masked,
    reconstruction_error,
    warmup_cosine,
)

MASK = DualMask(intra=0.5, inter=0.34, mix=0.5)
HOW = dict(mask=MASK, epochs=3, batch=4, lr=2e-3, warmup=0.2, weight_decay=0.05, seed=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(leads=3, seconds=2):
    torch.manual_seed(0)
    return MaskedModel(build("cbramod_ecg", "tiny", n_channels=leads, seconds=seconds))


def ecg(n=20):
    """One wave that all leads share, each with a sign and size of its own."""
    rng, t = np.random.default_rng(0), np.arange(400) / 200
    wave = np.sin(2 * np.pi * rng.uniform(1, 3, (n, 1, 1)) * t + rng.uniform(0, 6, (n, 1, 1)))
    return torch.from_numpy(wave * np.linspace(-1, 1.5, 3)[:, None]).float()


# --- masks


@given(
    leads=st.integers(2, 14),
    patches=st.integers(1, 30),
    intra=st.floats(0.01, 0.99),
    inter=st.floats(0.01, 0.99),
    mix=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_masks_hide_the_share_asked_for_within_leads_or_whole_leads(
    leads, patches, intra, inter, mix, seed
):
    mask = DualMask(intra, inter, mix)
    hidden = mask.draw(8, leads, patches, generator(seed))
    assert hidden.shape == (8, leads, patches) and hidden.dtype == torch.bool
    again = mask.draw(8, leads, patches, generator(seed))
    assert torch.equal(hidden, again)
    counts = hidden.sum(-1)
    within = (counts == max(1, round(intra * patches))).all(1)
    n_whole = min(max(1, round(inter * leads)), leads - 1)
    whole = ((counts == 0) | (counts == patches)).all(1) & ((counts > 0).sum(1) == n_whole)
    assert (within | whole).all()
    assert mix != 1 or whole.all()
    assert mix != 0 or within.all()


def test_every_patch_and_lead_is_hidden_alike_and_leads_differ():
    hidden = DualMask(0.4, 0.5, 0.5).draw(4000, 4, 5, generator())
    whole = (hidden.float().mean(-1) % 1 == 0).all(1)
    assert whole.float().mean().item() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(hidden[whole].float().mean(0), 0.5, atol=0.05)
    np.testing.assert_allclose(hidden[~whole].float().mean(0), 0.4, atol=0.05)
    assert (hidden[~whole][:, 0] != hidden[~whole][:, 1]).any()


# --- what a masked window tells


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_nothing_of_a_hidden_patch_is_seen(mix):
    """Neither by the convolutions nor by the spectrum: the output does not depend on it at all."""
    masked, x = model().eval(), ecg(4)
    hidden = MASK._replace(mix=mix).draw(4, 3, 2, generator())
    other = masked.patched(x).clone()
    other[hidden] = 100 * torch.randn(int(hidden.sum()), 200, generator=generator(1))
    with torch.no_grad():
        assert torch.equal(masked(x, hidden), masked(other.flatten(2), hidden))
        shown = masked.patched(x).clone()
        shown[~hidden] += 1
        assert not torch.equal(masked(x, hidden), masked(shown.flatten(2), hidden))


def test_the_loss_is_that_of_hidden_patches_alone():
    masked, x = model().eval(), ecg(4)
    hidden = torch.zeros(4, 3, 2, dtype=torch.bool)
    hidden[1, 2, 0] = hidden[3, 0, 1] = True
    with torch.no_grad():
        found, restored = masked.loss(x, hidden), masked(x, hidden)
    one = F.mse_loss(restored[1, 2, 0], x[1, 2, :200])
    other = F.mse_loss(restored[3, 0, 1], x[3, 0, 200:])
    torch.testing.assert_close(found, (one + other) / 2)


def test_tokens_of_a_patch_stand_where_the_patch_was():
    masked = model(leads=5, seconds=3)
    assert (masked.leads, masked.patches, masked.patch) == (5, 3, 200)
    x = torch.arange(2 * 5 * 600.0).reshape(2, 5, 600)
    assert torch.equal(masked.patched(x)[1, 4, 2], x[1, 4, 400:])


# --- the loop


def test_the_learning_rate_rises_and_falls_as_a_cosine():
    found = np.array([warmup_cosine(i, 100, 0.1) for i in range(100)])
    np.testing.assert_allclose(found[:10], np.arange(1, 11) / 10)
    share = np.arange(90) / 89
    np.testing.assert_allclose(found[10:], 0.02 + 0.98 * np.cos(np.pi * share / 2) ** 2)
    assert warmup_cosine(0, 5, 0.0) == 1 and warmup_cosine(4, 5, 0.0) == pytest.approx(0.02)


def test_it_learns_to_restore_a_lead_from_the_others():
    x, masked = ecg(120), model()
    how = HOW | dict(epochs=8, batch=6, lr=5e-3, on_epoch=lambda model: {"at": model.training})
    history, held = pretrain_masked(masked, x, **how), x[:12]
    assert [(row["epoch"], row["at"]) for row in history] == [(i, False) for i in range(9)]
    assert history[-1]["inter"] < 0.9 * held.square().mean()
    assert history[-1]["inter"] == reconstruction_error(masked, held, MASK._replace(mix=1.0))
    assert not masked.training and not any(p.requires_grad for p in masked.parameters())


def kill_after(calls):
    """Stop at the given call, counted over all batches and evaluations."""
    left = iter(range(calls, -1, -1))

    def hook(*_):
        if next(left) == 0:
            raise KeyboardInterrupt

    return hook


@pytest.mark.parametrize("calls", [1, 6, 11, 16])
def test_a_training_that_is_stopped_anywhere_goes_on_to_the_same_weights(calls, tmp_path):
    path, straight = tmp_path / "on" / "checkpoint.pt", model()
    history = pretrain_masked(straight, ecg(), **HOW)
    stopped = model()
    handle = stopped.register_forward_hook(kill_after(calls))
    with pytest.raises(KeyboardInterrupt):
        pretrain_masked(stopped, ecg(), **HOW, checkpoint=path)
    handle.remove()
    fresh = model()  # a new process starts from fresh weights
    again = pretrain_masked(fresh, ecg(), **HOW, checkpoint=path)
    assert str(again) == str(history)  # NaN of epoch 0 included
    for a, b in zip(straight.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path, write = tmp_path / "checkpoint.pt", torch.save

    def killed_the_second_time(state, to):
        if path.is_file():
            to.write_bytes(b"half of it")
            raise KeyboardInterrupt
        write(state, to)

    monkeypatch.setattr(torch, "save", killed_the_second_time)
    with pytest.raises(KeyboardInterrupt):
        pretrain_masked(model(), ecg(), **HOW, checkpoint=path)
    assert torch.load(path, weights_only=True)["history"][-1]["epoch"] == 0


def test_foreign_checkpoints_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    pretrain_masked(model(), ecg(), **HOW, checkpoint=path)
    with pytest.raises(ValueError, match="checkpoint.pt: .*, found .'seed': 0.; delete it to"):
        pretrain_masked(model(), ecg(), **HOW | {"seed": 1}, checkpoint=path)
    with pytest.raises(ValueError, match="found .'data'"):
        pretrain_masked(model(), 2 * ecg(), **HOW, checkpoint=path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="found a damaged or foreign file"):
        pretrain_masked(model(), ecg(), **HOW, checkpoint=path)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="more windows than a batch of 99, found 20"):
        pretrain_masked(model(), ecg(), **HOW | {"batch": 99})
    with pytest.raises(FloatingPointError, match="expected a finite loss, .* at learning rate 1e"):
        pretrain_masked(model(), ecg(), **HOW | {"lr": 1e30, "epochs": 30})


# --- the ECG encoder is CBraMod


def test_a_file_of_cbramod_loads_with_its_position_encoding(tmp_path):
    """As its authors write it, with mask token and head; trained on 19 electrodes, read for 12."""
    published = fill(build("cbramod", "base", n_channels=19).requires_grad_(False))
    heads = {"patch_embedding.mask_encoding": torch.zeros(200), "proj_out.0.bias": torch.zeros(200)}
    torch.save({**published.state_dict(), **heads}, tmp_path / "pretrained_weights.pth")
    found = build("cbramod_ecg", "base", tmp_path / "pretrained_weights.pth")
    weight = found.patch_embedding.positional_encoding[0].weight
    assert weight.shape == (200, 1, 19, 7)
    for key, value in published.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    assert (found.input_spec.channels, found.input_spec.seconds) == (12, 10)
    assert found.token_shape(12) == (120, 200)
    x = windows("twelve", (1, 12, 2000))
    published.input_spec = found.input_spec
    with torch.inference_mode():
        torch.testing.assert_close(found(x), published(x), rtol=1e-4, atol=1e-4)
