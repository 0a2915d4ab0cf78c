"""CardioGAN: networks against closed forms, segments against identity, training on easy signals."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from biox.backbones import build
from biox.baselines import cardiogan_networks as networks
from biox.baselines.cardiogan import (
    classify,
    example_translations,
    translate,
    translate_and_classify,
)
from biox.baselines.cardiogan_networks import (
    AttentionGate,
    FrequencyDiscriminator,
    Generator,
    Networks,
    TimeDiscriminator,
    log_magnitude,
    n_parameters,
)
from biox.baselines.cardiogan_segments import cut, scaled, stitch, to_segments, to_windows
from biox.baselines.cardiogan_settings import PUBLISHED, CardioGAN
from biox.baselines.cardiogan_training import (
    Segments,
    Training,
    cycle_loss,
    fit,
    rate_share,
    translated,
    verdict,
)
from biox.baselines.outcome import predictions_of, save_outcomes
from biox.data.windows import Windows

SMALL = CardioGAN(width=1 / 16, epochs=1, batch=8, segments=16)


def test_a_published_generator_has_the_parameters_that_the_paper_states():
    """28.2M in Table 1 of BioX-Bridge: one generator."""
    with torch.device("meta"):
        assert n_parameters(Generator()) == 28_237_255
        assert PUBLISHED.width == 1


@pytest.mark.parametrize("width", [1.0, 0.125])
def test_parameters_in_closed_form(width):
    n = [round(width * k) for k in (64, 128, 256, 512, 512, 512)]
    encoder = sum(16 * a * b for a, b in zip([1, *n], n, strict=False)) + 2 * sum(n[1:])
    up = n[::-1]
    decoder = 16 * up[0] ** 2 + sum(16 * a * b for a, b in zip(up, up[1:], strict=False))
    decoder += 2 * sum(n) + 16 * n[0] + 1
    gates = sum(2 * (k * k + k) + k + 1 for k in n)
    judged = n[:4]
    judges = {
        kernel: sum(kernel * a * b for a, b in zip([1, *judged], judged, strict=False))
        + 2 * sum(judged[1:]) + kernel * judged[-1] + 1
        for kernel in (16, 7 * 7)
    }  # fmt: skip
    with torch.device("meta"):
        found = Networks(width)
    assert n_parameters(found.generators["old"]) == encoder + decoder + gates
    assert n_parameters(found.judges["new"]["time"]) == judges[16]
    assert n_parameters(found.judges["old"]["frequency"]) == judges[49]
    total = 2 * (encoder + decoder + gates) + 2 * (judges[16] + judges[49])
    assert n_parameters(found) == total


@pytest.mark.parametrize("length", [512, 500, 129, 1, 577])
def test_translation_keeps_any_length_and_stays_within_bounds(length):
    x = torch.randn(2, length)
    y = Generator(1 / 16)(x)
    assert y.shape == (2, length) and y.abs().max() <= 1


@pytest.mark.parametrize("length", [128, 301, 512])
def test_judges_take_any_length(length):
    x = torch.randn(3, length)
    assert TimeDiscriminator(1 / 16)(x).shape[:2] == (3, 1)
    assert FrequencyDiscriminator(1 / 16)(x).shape[:2] == (3, 1)


def test_gates_let_through_a_share_and_a_closed_gate_nothing():
    torch.manual_seed(0)
    gate = AttentionGate(4)
    skip, decoded = torch.randn(2, 3, 4, 50)
    share = gate(skip, 5 * decoded)
    assert share.shape == (3, 1, 50) and 0 < share.min() and share.max() < 1
    assert share.std() > 1e-3  # it looks at its input
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


def test_frequency_judge_hears_magnitudes_only():
    torch.manual_seed(0)
    x = torch.randn(4, 512)
    frequency, time = FrequencyDiscriminator(0.125), TimeDiscriminator(0.125)
    torch.testing.assert_close(frequency(-x), frequency(x))
    assert (time(-x) - time(x)).abs().max() > 1e-4


def test_short_time_spectrum_peaks_at_the_tone():
    t = torch.arange(512) / 128
    spectrum = log_magnitude(torch.sin(2 * np.pi * 20 * t)[None])
    assert spectrum.shape == (1, 65, 17)
    # Bins are 1 Hz apart; a Hann window sums to half its length, a sine splits in two.
    assert set(spectrum[0, :, 2:-2].argmax(0).tolist()) == {20}
    assert spectrum[0, 20, 8] == pytest.approx(np.log(1 + 32), abs=0.01)


def test_cut_and_stitch_undo_each_other():
    x = np.random.default_rng(0).normal(size=(3, 1000))
    segments = cut(x, 300)
    assert segments.shape == (3, 4, 300)
    np.testing.assert_array_equal(segments[:, 3], x[:, 700:])
    np.testing.assert_array_equal(stitch(segments, 1000), x)
    assert cut(x, 250).shape == (3, 4, 250)
    with pytest.raises(ValueError, match="at least one segment, 512 samples, found 400"):
        cut(x[:, :400], 512)


def smooth(n, seconds, rate, seed=0):
    """Sums of sines below 20 Hz."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    f, phase = rng.uniform(0.5, 20, (n, 5, 1)), rng.uniform(0, 6, (n, 5, 1))
    return np.sin(2 * np.pi * f * t + phase).sum(1)[:, None].astype(np.float32)


@pytest.mark.parametrize(("rate", "seconds"), [(100, 60), (125, 60), (125, 30), (64, 10)])
def test_segments_and_back_is_the_identity_but_for_the_scale(rate, seconds):
    x = smooth(3, seconds, rate)
    settings = CardioGAN(seconds=2.0)
    segments = to_segments(x, rate, settings)
    assert segments.dtype == np.float32 and segments.shape[2] == 256
    np.testing.assert_allclose(segments.min(-1), -1, atol=1e-6)
    np.testing.assert_allclose(segments.max(-1), 1, atol=1e-6)
    whole = CardioGAN(seconds=float(seconds))  # one segment a window: one scale
    back = to_windows(to_segments(x, rate, whole), seconds, rate, whole)
    assert back.shape == x.shape
    centre = slice(rate, -rate)
    for a, b in zip(back[:, 0, centre], x[:, 0, centre], strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.9999
        slope, offset = np.polyfit(a, b, 1)
        assert np.abs(slope * a + offset - b).max() < 0.05


def test_a_flat_segment_becomes_zeros():
    np.testing.assert_array_equal(scaled(np.full((2, 4), 7.0)), 0)


def waves(n, seed, sharp):
    """One second of sines at a random rate, or of their fifth powers: narrow lobes."""
    rng = np.random.default_rng(seed)
    t, f, phase = np.arange(128) / 128, rng.uniform(2, 6, (n, 1)), rng.uniform(0, 6, (n, 1))
    sine = np.sin(2 * np.pi * f * t + phase)
    return scaled(sine**5 if sharp else sine).astype(np.float32)


@pytest.mark.slow
def test_unpaired_training_learns_an_easy_translation():
    """Sines to narrow lobes, without a pair: below what constants reach, in the cycle and in truth.

    The judges see no pair, so the sign is theirs to choose, as in any unpaired translation.
    """
    pair = Segments(waves(128, 0, True), waves(128, 1, False))
    val = Segments(waves(32, 2, True), waves(32, 3, False))
    settings = replace(SMALL, epochs=20, batch=16, lr=2e-3, segments=None, seconds=1.0)
    found = fit(pair, val, settings, seed=0)
    constant = sum(np.abs(x - np.median(x)).mean() for x in (val.old, val.new))
    assert not found.failed and len(found.val_loss) == 21 and found.seconds > 0
    assert found.best_epoch == np.argmin(found.val_loss)
    assert min(found.val_loss) < 0.6 * constant
    y = translated(found.generator, val.new)
    shares = [(np.abs(x) > 0.5).mean() for x in (y, val.old, val.new)]  # lobes are narrow
    assert abs(shares[0] - shares[1]) < 0.5 * abs(shares[2] - shares[1])
    alike = [abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(y, val.new**5, strict=True)]
    assert np.mean(alike) > 0.6


def test_a_generator_can_draw_what_it_is_shown():
    torch.manual_seed(0)
    x = torch.from_numpy(waves(64, 0, False))
    y, generator = x**5, Generator(1 / 16)
    optimizer = torch.optim.Adam(generator.parameters(), lr=5e-3)
    for _ in range(40):
        loss = (generator(x) - y).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.75 * (y - y.median()).abs().mean()


def test_judges_know_nothing_and_then_learn_to_tell():
    pair = Segments(waves(16, 0, True), waves(16, 1, False))
    training = Training(pair, SMALL, 0, "cpu")
    old, new = next(training.batches(pair, 16))
    nets = training.networks
    for side in nets.judges.values():
        for judge in side.values():
            nn.init.zeros_(judge.answer.weight)

    @torch.no_grad()
    def told():
        fake = cycle_loss(nets, old, new)[1]
        real = verdict(nets, {"old": old, "new": new}, True, SMALL)
        return (real + verdict(nets, fake, False, SMALL)).item()

    # One half says nothing: log 2 for real and for translated, of 2 sides, weighted 3 and 1.
    assert told() == pytest.approx(2 * 2 * (3 + 1) * np.log(2), rel=1e-5)
    before = [p.clone() for p in nets.generators.parameters()]
    for _ in range(3):
        training.step(old, new)
    assert told() < 0.9 * 16 * np.log(2)
    assert all(p.requires_grad for p in nets.judges.parameters())
    changed = [(a != b).any() for a, b in zip(before, nets.generators.parameters(), strict=True)]
    assert np.mean(changed) > 0.9


def test_learning_rate_stays_for_ten_of_fifteen_epochs_then_falls_linearly():
    shares = [rate_share(epoch, 15) for epoch in range(15)]
    assert shares[:10] == [1] * 10
    np.testing.assert_allclose(shares[10:], [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert rate_share(0, 1) == 1


def paired_windows(n, seed, seconds=8.0):
    """Paired windows at the teachers' rates, pulses and sines of one rhythm."""
    rng = np.random.default_rng(seed)
    f, phase = rng.uniform(0.8, 2, (n, 1)), rng.uniform(0, 6, (n, 1))
    signals = {}
    for name, rate in (("ecg", 100), ("ppg", 125)):
        t = np.arange(round(seconds * rate)) / rate
        x = np.sin(2 * np.pi * f * t + phase)
        x = ((1 + x) / 2) ** 30 if name == "ecg" else x
        signals[name] = x[:, None].astype(np.float32)
    return Windows(
        signals=signals,
        rates={"ecg": 100.0, "ppg": 125.0},
        units={"ecg": "z-score", "ppg": "z-score"},
        channels={"ecg": ("ECG",), "ppg": ("PPG",)},
        labels=rng.integers(0, 3, n),
        subjects=np.array([f"S{i % 2}" for i in range(n)]),
        recordings=np.array(["r"] * n),
        starts=np.arange(n, dtype=float),
        classes=("a", "b", "c"),
        source="simulated",
    )


@pytest.fixture(scope="module")
def splits():
    return {name: paired_windows(n, i) for i, (name, n) in enumerate(
        {"pair": 8, "val": 4, "test": 5}.items()
    )}  # fmt: skip


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    old = build("hubert_ecg", "tiny", seconds=8.0).eval().requires_grad_(False)
    return old, nn.Linear(old.token_shape(old.n_layers)[1], 3).requires_grad_(False)


@pytest.fixture(scope="module")
def outcomes(splits, teacher):
    return translate_and_classify(splits, *teacher, SMALL, [0, 1], n_jobs=1)


def test_outcomes_are_probabilities_of_the_test_windows(outcomes, splits, tmp_path):
    assert [o.seed for o in outcomes] == [0, 1] and {o.method for o in outcomes} == {"CardioGAN"}
    for o in outcomes:
        assert o.probabilities.shape == (5, 3) and not o.failed
        np.testing.assert_allclose(o.probabilities.sum(1), 1, rtol=1e-5)
        assert len(o.train_loss) == len(o.val_loss) == 2 and o.lr == SMALL.lr
        with torch.device("meta"):
            assert o.n_parameters == n_parameters(Networks(SMALL.width))
    assert np.abs(outcomes[0].probabilities - outcomes[1].probabilities).max() > 0
    save_outcomes(tmp_path, outcomes, splits["test"], "wesad-ecg2ppg")
    frame = pd.read_csv(tmp_path / "predictions.csv")
    assert len(frame) == 10 and set(frame["seed"]) == {0, 1}


def test_results_do_not_depend_on_the_number_of_processes(outcomes, splits, teacher):
    again = translate_and_classify(splits, *teacher, SMALL, [0, 1], n_jobs=2)
    for a, b in zip(outcomes, again, strict=True):
        np.testing.assert_array_equal(a.probabilities, b.probabilities)
        assert a.val_loss == b.val_loss and a.train_loss == b.train_loss


def test_labels_are_never_read_and_no_pair_is_used(outcomes, splits, teacher):
    other = {
        name: replace(w, labels=np.roll(w.labels, 1) if name == "test" else -np.ones_like(w.labels))
        for name, w in splits.items()
    }
    again = translate_and_classify(other, *teacher, SMALL, [0], n_jobs=1)[0]
    np.testing.assert_array_equal(again.probabilities, outcomes[0].probabilities)
    a, b = (predictions_of([outcomes[0]], w["test"], "d") for w in (splits, other))
    assert a.drop(columns="label").equals(b.drop(columns="label")) and not a.equals(b)


def test_the_true_ecg_of_test_windows_is_never_read(outcomes, splits, teacher):
    test = splits["test"]
    hidden = replace(test, signals=test.signals | {"ecg": np.full_like(test.signals["ecg"], 9)})
    again = translate_and_classify(splits | {"test": hidden}, *teacher, SMALL, [0], n_jobs=1)[0]
    np.testing.assert_array_equal(again.probabilities, outcomes[0].probabilities)


def test_a_training_that_breaks_off_is_failed_not_blank(splits, teacher):
    outcome = translate_and_classify(splits, *teacher, replace(SMALL, lr=1e36), [3], n_jobs=1)[0]
    assert "expected a finite loss" in outcome.failed and "epoch 1" in outcome.failed
    assert outcome.probabilities.shape == (5, 3) and np.isnan(outcome.probabilities).all()
    assert outcome.seed == 3 and len(outcome.val_loss) == 1


def test_a_teacher_that_cannot_answer_is_failed(splits, teacher):
    made = translate(splits, teacher[0].input_spec, SMALL, [0], n_jobs=1)[0]
    np.testing.assert_allclose(made.signals.mean(2), 0, atol=1e-5)
    np.testing.assert_allclose(made.signals.std(2), 1, atol=1e-4)
    old = copy.deepcopy(teacher[0])
    next(old.parameters()).fill_(np.inf)
    outcome = classify(made, old, teacher[1])
    assert "finite activations" in outcome.failed and np.isnan(outcome.probabilities).all()


def test_examples_can_be_drawn_from_a_csv(splits, teacher, tmp_path):
    from biox.report.translations import plot_translations

    made = translate(splits, teacher[0].input_spec, SMALL, [0], n_jobs=1)[0]
    frame = example_translations(splits["test"], made, "ecg", n=2, seconds=3.0)
    assert len(frame) == 2 * (375 + 300 + 300)
    shown = frame[(frame["start"] == 4) & frame["translated"]]["value"]
    np.testing.assert_allclose(shown, made.signals[4, 0, :300], atol=1e-4)
    frame.to_csv(tmp_path / "examples.csv", index=False)
    figure = plot_translations(pd.read_csv(tmp_path / "examples.csv"))
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels[0::2] == ["PPG\nrecorded", "ECG\nfrom PPG", "ECG\nrecorded"]
    drawn = figure.axes[2].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, made.signals[0, 0, :300], atol=1e-4)
    failed = replace(made, fit=replace(made.fit, failed="so it is"))
    with pytest.raises(ValueError, match="found one that failed .so it is."):
        example_translations(splits["test"], failed, "ecg")


def test_windows_without_both_modalities_or_with_leads_are_refused(splits, teacher):
    spec, pair = teacher[0].input_spec, splits["pair"]
    lone = replace(pair, signals={"ppg": pair.signals["ppg"]})
    with pytest.raises(ValueError, match=r"expected ecg and one other modality in pair, found"):
        translate(splits | {"pair": lone}, spec, SMALL, [0])
    leads = replace(pair, signals=pair.signals | {"ecg": pair.signals["ecg"].repeat(2, 1)})
    with pytest.raises(ValueError, match=r"expected one channel in pair, found .*'ecg': 2"):
        translate(splits | {"pair": leads}, spec, SMALL, [0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("width", 0.0, r"width: expected a share in \(0, 1\], found 0.0"),
        ("width", 2.0, r"width: expected a share in \(0, 1\], found 2.0"),
        ("epochs", 0, "epochs: expected a number above 0, found 0"),
        ("lr", -1e-4, "lr: expected a number above 0"),
        ("cycle", -1.0, "cycle: expected a weight of at least 0, found -1.0"),
        ("segments", 0, "segments: expected a number above 0, or null, found 0"),
        ("seconds", 4.001, "seconds: expected whole samples at 128 Hz, found 4.001"),
        ("seconds", 0.5, "seconds: expected segments of at least 128 samples, found 0.5"),
        ("directions", ("a", "a"), "directions: expected each once"),
    ],
)
def test_impossible_settings_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        CardioGAN(**{key: value})


def test_settings_come_from_the_projects_params():
    from pathlib import Path

    from biox.config import load_settings

    settings = load_settings(Path(__file__).parent.parent / "params.yaml")
    assert set(settings.cardiogan.directions) <= set(settings.directions)
    assert settings.cardiogan == CardioGAN()
    assert settings.override("cardiogan", {"width": 1}).cardiogan.width == 1
    with pytest.raises(ValueError, match="cardiogan.batch: expected a number above 0"):
        settings.override("cardiogan", {"batch": 0})
    assert networks.FFT <= CardioGAN().samples
