"""CardioGAN: networks in closed form, segments against identity, training on easy signals."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann
from torch import nn
from toy import SETTINGS, toy_direction, toy_windows

from biox.baselines import cardiogan
from biox.baselines.cardiogan import (
    Generator,
    Networks,
    Segments,
    adversarial_loss,
    cycle_loss,
    log_magnitude,
    to_segments,
    to_windows,
    train_cardiogan,
    train_step,
)
from biox.teacher import teacher_probabilities

SMALL = {"width": 1 / 16, "epochs": 1, "batch": 8, "segments": 16}
SIZES = {"pair": 8, "val": 4, "test": 5}


def section(**values):
    """The project's settings, but small."""
    return SETTINGS.override("cardiogan", SMALL | values).cardiogan


# --- networks -------------------------------------------------------------------------------------


def test_networks_have_the_published_number_of_parameters():
    """Table 1 of BioX-Bridge states 28.2M: one generator."""
    with torch.device("meta"):
        networks = Networks()
    published, kernels = 28_237_255, 16 + 7 * 7
    weights = 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512  # for each place of a kernel
    judges = kernels * weights + 2 * (2 * (128 + 256 + 512) + 1)  # norms, a bias
    assert sum(p.numel() for p in networks.generators["old"].parameters()) == published
    assert networks.n_parameters == 2 * (published + judges)


@pytest.mark.parametrize("length", [512, 500, 129, 1, 577])
def test_translation_keeps_any_length_and_stays_within_bounds(length):
    x = torch.randn(2, length)
    y = Generator(1 / 16)(x)
    assert y.shape == (2, length) and y.abs().max() <= 1


def test_a_closed_gate_lets_nothing_through():
    torch.manual_seed(0)
    generator = Generator(1 / 16)
    x = torch.randn(2, 512)
    before = generator(x)
    for gate in generator.gates:
        nn.init.constant_(gate.share.bias, -1e4)
    closed = generator(x)
    assert (closed - before).abs().max() > 1e-6  # what is left passed the bottom
    for gate in generator.gates:
        nn.init.normal_(gate.skip.weight)
    torch.testing.assert_close(generator(x), closed)


def test_short_time_spectrum_is_scipys():
    x = np.random.default_rng(0).normal(size=512)
    expected = ShortTimeFFT(hann(128, sym=False), 32, 128.0).stft(x, p0=2, p1=15)
    found = log_magnitude(torch.from_numpy(x)[None].float())
    assert found.shape == (1, 65, 17)
    np.testing.assert_allclose(found[0, :, 2:15], np.log1p(np.abs(expected)), atol=1e-4)


# --- windows and segments -------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(1000, 8), (1024, 8), (1100, 9), (128, 1)])
def test_segments_cover_a_window_and_the_last_ends_with_it(n, k):
    settings = section(seconds=1.0)  # 128 samples
    x = np.random.default_rng(0).normal(size=(3, 1, n))
    segments = to_segments(x, 128, settings)
    assert segments.shape == (3, k, 128) and segments.dtype == np.float32
    np.testing.assert_allclose(segments.min(-1), -1, atol=1e-6)
    np.testing.assert_allclose(segments.max(-1), 1, atol=1e-6)
    last = np.argsort(x[:, 0, -128:], axis=1)
    np.testing.assert_array_equal(np.argsort(segments[:, -1], axis=1), last)
    marked = np.arange(3 * k * 128, dtype=np.float32).reshape(3, k, 128)
    joined = to_windows(marked, n / 128, 128, settings)[:, 0]
    assert joined.shape == (3, n)
    np.testing.assert_array_equal(joined[:, -128:], marked[:, -1])
    whole = 128 * (n // 128) - (128 if n % 128 else 0)  # the overlap belongs to the last
    np.testing.assert_array_equal(joined[:, :whole], marked.reshape(3, -1)[:, :whole])


def smooth(n, seconds, rate, seed=0):
    """Sums of sines below 20 Hz."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    f, phase = rng.uniform(0.5, 20, (n, 5, 1)), rng.uniform(0, 6, (n, 5, 1))
    return np.sin(2 * np.pi * f * t + phase).sum(1)[:, None].astype(np.float32)


@pytest.mark.parametrize(("rate", "seconds"), [(100, 60), (125, 60), (125, 30), (64, 10)])
def test_segments_and_back_is_the_identity_but_for_the_scale(rate, seconds):
    x = smooth(3, seconds, rate)
    whole = section(seconds=float(seconds))  # one segment a window: one scale
    back = to_windows(to_segments(x, rate, whole), seconds, rate, whole)
    assert back.shape == x.shape and back.dtype == np.float32
    centre = slice(rate, -rate)
    for a, b in zip(back[:, 0, centre], x[:, 0, centre], strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.9999
        slope, offset = np.polyfit(a, b, 1)
        assert np.abs(slope * a + offset - b).max() < 0.05


def test_a_flat_segment_becomes_zeros_and_a_short_window_is_refused():
    settings = section()
    np.testing.assert_array_equal(to_segments(np.full((2, 1, 600), 7.0), 128, settings), 0)
    with pytest.raises(ValueError, match="at least one segment, 512 samples, found 400"):
        to_segments(np.zeros((2, 1, 400)), 128, settings)


def test_segments_of_an_epoch_are_evenly_spread():
    data = Segments(np.arange(10.0)[:, None], np.arange(5.0)[:, None])
    old, new = data.spread(4)
    assert old[:, 0].tolist() == [0, 3, 6, 9] and new[:, 0].tolist() == [0, 1, 3, 4]
    assert [len(old) for old, _ in data.batches(2, "cpu")] == [2, 2, 1]


# --- losses and training --------------------------------------------------------------------------


def waves(seed):
    """Eight segments: one second of sines at a random rate."""
    rng, t = np.random.default_rng(seed), np.arange(128) / 128
    f, phase = rng.uniform(2, 6, (8, 1)), rng.uniform(0, 6, (8, 1))
    return np.sin(2 * np.pi * f * t + phase).astype(np.float32)


def some_networks():
    torch.manual_seed(0)
    return Networks(1 / 16)


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.forward = lambda x: factor * x


def test_the_cycle_loss_is_what_both_ways_lose():
    networks = some_networks()
    networks.generators["old"], networks.generators["new"] = Scale(3.0), Scale(0.5)
    old, new = torch.full((2, 128), 0.2), torch.full((2, 128), -1.0)
    loss, fake = cycle_loss(networks, old, new)
    assert loss.item() == pytest.approx(0.5 * 0.2 + 0.5 * 1.0)  # 3 x 0.5 is half too much
    torch.testing.assert_close(fake["old"], 3 * new)
    torch.testing.assert_close(fake["new"], 0.5 * old)
    networks.generators["new"] = Scale(1 / 3)
    assert cycle_loss(networks, old, new)[0].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("logit", [0.0, 1.5, -2.0])
def test_the_adversarial_loss_of_constant_discriminators_is_known(logit):
    networks = some_networks()
    for side in networks.discriminators.values():
        for domain, discriminator in side.items():
            nn.init.zeros_(discriminator.last.weight)
            nn.init.constant_(discriminator.last.bias, logit if domain == "time" else -logit)
    x = {"old": torch.randn(2, 128), "new": torch.randn(3, 128)}
    settings = section(alpha=3.0, beta=0.5)
    right, wrong = np.log1p(np.exp(-logit)), np.log1p(np.exp(logit))
    real, fake = (adversarial_loss(networks, x, kind, settings).item() for kind in (True, False))
    assert real == pytest.approx(2 * (3 * right + 0.5 * wrong), rel=1e-5)  # two sides
    assert fake == pytest.approx(2 * (3 * wrong + 0.5 * right), rel=1e-5)


def test_a_step_trains_both_sides():
    """Steps on one batch: discriminators tell better, and the cycle loses less, than before."""
    settings, networks = section(lr=1e-3, alpha=0.3, beta=0.1), some_networks()
    old, new = torch.from_numpy(waves(0)) ** 5, torch.from_numpy(waves(1))  # sharp, and round
    optimizers = cardiogan.adam(networks, settings)
    start = {name: p.detach().clone() for name, p in networks.named_parameters()}

    @torch.no_grad()
    def told():
        fake = cycle_loss(networks, old, new)[1]
        real = adversarial_loss(networks, {"old": old, "new": new}, True, settings)
        return (real + adversarial_loss(networks, fake, False, settings)).item()

    before, at_start = told(), cycle_loss(networks, old, new)[0].item()
    losses = [train_step(networks, optimizers, old, new, settings) for _ in range(30)]
    assert losses[0] == pytest.approx(at_start, rel=1e-5)
    assert losses[-1] < 0.9 * losses[0] and told() < before
    assert all(p.requires_grad for p in networks.parameters())
    changed = [not torch.equal(p, start[name]) for name, p in networks.named_parameters()]
    assert np.mean(changed) > 0.9


def test_the_epoch_kept_has_the_lowest_loss_on_val(monkeypatch):
    """With losses made up: of equal ones, the first epoch counts."""
    given, seen = [9.0, 8.0, 4.0, 2.0, 3.0, 2.0], []  # train and val before training, then val

    def made_up(networks, data, device):
        seen.append(copy.deepcopy(networks.generators["old"].state_dict()))
        return given[len(seen) - 1]

    monkeypatch.setattr(cardiogan, "mean_cycle_loss", made_up)
    data, settings = Segments(waves(0), waves(1)), section(epochs=4, seconds=1.0)
    networks, history = train_cardiogan(data, data, settings, seed=0)
    assert history["epoch"].tolist() == [0, 1, 2, 3, 4] and history["val"].tolist() == given[1:]
    kept = networks.generators["old"].state_dict()
    same = [all(torch.equal(kept[k], state[k]) for k in kept) for state in seen]
    assert same == [False, False, False, True, False, False]


def test_no_pair_is_kept_and_an_epoch_sees_each_segment_once(monkeypatch):
    seen = []
    monkeypatch.setattr(cardiogan, "train_step", lambda *step: seen.append(step[2:4]) or 0.0)
    numbered = np.arange(16, dtype=np.float32)[:, None].repeat(128, 1)
    pair, settings = Segments(numbered, 100 + numbered), section(epochs=2, segments=12, seconds=1.0)
    train_cardiogan(pair, pair, settings, seed=0)
    old, new = (torch.cat([batch[k] for batch in seen])[:, 0].reshape(2, 12) for k in (0, 1))
    assert all(len(set(rows.tolist())) == 12 for rows in (*old, *new))
    assert old.max() < 100 <= new.min() and (old == new - 100).float().mean() < 0.5


def test_learning_rate_stays_for_ten_of_fifteen_epochs_then_falls_linearly():
    shares = [cardiogan.lr_factor(epoch, 15) for epoch in range(1, 16)]
    assert shares[:10] == [1] * 10
    np.testing.assert_allclose(shares[10:], [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert cardiogan.lr_factor(1, 1) == 1


# --- a direction ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits():
    return {name: toy_windows(n, i) for i, (name, n) in enumerate(SIZES.items())}


@pytest.fixture(scope="module")
def frozen():
    direction = toy_direction()
    settings = direction.settings.with_seeds([0, 1]).model_copy(update={"device": "cpu"})
    return replace(direction, settings=settings.override("cardiogan", SMALL))


def run(frozen, splits, seeds=None, **values):
    settings = frozen.settings.override("cardiogan", values)
    settings = settings if seeds is None else settings.with_seeds(seeds)
    x_new, x_old = (
        {split: torch.from_numpy(w.signals[key]) for split, w in splits.items()}
        for key in ("ppg", "ecg")
    )
    return cardiogan.cardiogan(replace(frozen, settings=settings), x_new, x_old)


@pytest.fixture(scope="module")
def outcome(frozen, splits):
    return run(frozen, splits)


def test_results_are_probabilities_of_the_test_windows(outcome, frozen):
    results, signals = outcome
    assert [r.seed for r in results] == [0, 1] and {r.method for r in results} == {"CardioGAN"}
    for r, x in zip(results, signals, strict=True):
        assert r.probabilities.shape == (5, 2) and not r.failed
        np.testing.assert_allclose(r.probabilities.sum(1), 1, rtol=1e-5)
        assert len(r.history) == 2 and r.best_epoch == r.history["val"].argmin()
        assert r.lr == frozen.settings.cardiogan.lr
        assert r.n_parameters == Networks(1 / 16).n_parameters
        assert x.shape == (5, 1, 1000)  # the old model's rate
        np.testing.assert_allclose(x.mean(2), 0, atol=1e-5)
        np.testing.assert_allclose(x.std(2), 1, atol=1e-4)
        expected = teacher_probabilities(frozen.old, frozen.head, torch.from_numpy(x))
        np.testing.assert_allclose(r.probabilities, expected, atol=1e-6)
    assert np.abs(results[0].probabilities - results[1].probabilities).max() > 0


def test_a_seed_decides_everything_and_the_true_old_modality_of_test_is_never_read(
    outcome, frozen, splits
):
    test = splits["test"]
    hidden = replace(test, signals=test.signals | {"ecg": np.full_like(test.signals["ecg"], 9)})
    again, signals = run(frozen, splits | {"test": hidden}, seeds=[1])  # alone, and after others
    np.testing.assert_array_equal(again[0].probabilities, outcome[0][1].probabilities)
    np.testing.assert_array_equal(signals[0], outcome[1][1])
    pd.testing.assert_frame_equal(again[0].history, outcome[0][1].history)


def test_a_training_that_breaks_off_is_failed_not_blank(frozen, splits):
    (failed,), (signal,) = run(frozen, splits, seeds=[3], lr=1e36)
    assert "expected a finite loss" in failed.failed
    assert "in epoch 1 at learning rate 1e+36" in failed.failed and failed.seed == 3
    assert failed.probabilities.shape == (5, 2) and np.isnan(failed.probabilities).all()
    assert signal.shape == (5, 1, 1000) and np.isnan(signal).all()


def test_a_teacher_that_cannot_answer_is_failed(frozen, splits):
    old = copy.deepcopy(frozen.old)
    nn.init.constant_(next(old.parameters()), np.inf)
    (failed,), _ = run(replace(frozen, old=old), splits, seeds=[0])
    assert "finite activations" in failed.failed and np.isnan(failed.probabilities).all()
