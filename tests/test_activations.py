"""The one pass: equal to the models, its files, and what a direction is made from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from toy import SETTINGS, SMALL, toy_models, toy_pass, toy_root, toy_windows

from biox.activations import (
    Activations,
    describe,
    flattened_states,
    frozen_backbone,
    last_path,
    layer_input,
    load_direction,
    load_windows,
    window_key,
    window_specs,
)
from biox.backbones import build
from biox.cka import linear_cka
from biox.config import PATHS
from biox.teacher import save_teacher

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def models():
    return toy_models()


@pytest.fixture(scope="module")
def cached(models):
    return toy_pass(models)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return toy_root()


def same(a, b):
    for name in ("new", "old", "tokens"):
        for x, y in zip(getattr(a, name), getattr(b, name), strict=True):
            assert torch.equal(x, y), name
    assert torch.equal(a.logits, b.logits)
    for name in ("last", "labels", "subjects", "recordings", "starts"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.classes, a.source, len(a)) == (b.classes, b.source, len(b))


# --- the pass


def test_it_keeps_what_the_models_compute(models, cached):
    new, old, head = models
    ppg, ecg = (torch.from_numpy(toy_windows().signals[name]) for name in ("ppg", "ecg"))
    with torch.no_grad():
        states = old.hidden_states(ecg)
        for found, h in zip(cached.new, new.hidden_states(ppg)[1:], strict=True):
            torch.testing.assert_close(found, h.mean(1), **CLOSE)
        for found, h in zip((*cached.old, cached.pooled_last), states, strict=True):
            torch.testing.assert_close(found, h.mean(1), **CLOSE)
        logits = head(states[-1].mean(1))
    np.testing.assert_allclose(cached.last, states[-1], **CLOSE)
    torch.testing.assert_close(cached.logits, logits, **CLOSE)
    assert cached.pseudo_labels.tolist() == logits.argmax(1).tolist()
    assert cached.subjects.tolist() == toy_windows().subjects.tolist() and len(cached) == 24


def test_kept_tokens_are_those_of_the_windows_whatever_the_batch(models, cached):
    other = toy_pass(models, batch_size=24)
    with torch.no_grad():
        states = models[1].hidden_states(torch.from_numpy(toy_windows().signals["ecg"]))
    for found, again, h in zip(cached.tokens, other.tokens, states[:-1], strict=True):
        assert found.shape == (1024, h.shape[2])
        torch.testing.assert_close(found, again, **CLOSE)
        assert torch.cdist(found, h.flatten(0, 1)).min(1).values.max() < 0.01


def test_layer_inputs_and_flattened_states_are_those_of_the_models(models):
    old, x = models[1], torch.from_numpy(toy_windows().signals["ecg"])
    with torch.no_grad():
        states = old.hidden_states(x)
    for l in (0, 2):
        torch.testing.assert_close(layer_input(old, x, l, batch_size=7), states[l], **CLOSE)
    flat = flattened_states(old, x, batch_size=7)
    assert [h.shape for h in flat] == [(24, 24)] * len(states)  # far fewer than tokens x features
    for debiased in (False, True):
        whole = [h.flatten(1).double().numpy() for h in (states[1], states[4])]
        expected = linear_cka(*whole, debiased)
        assert linear_cka(flat[1], flat[4], debiased) == pytest.approx(expected, abs=1e-4)


def test_values_that_are_not_finite_name_the_layer(models):
    broken = build("papagei", "tiny", seconds=10)
    with torch.no_grad():
        broken.basicblock_list[3].conv2.conv.bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="PaPaGei.*output of layer 3"):
        toy_pass((broken, *models[1:]), toy_windows(4))


def test_float16_rounds_the_last_layer_alone(models, cached, tmp_path):
    half = toy_pass(models, path=tmp_path / "pair.safetensors", dtype="float16")
    assert half.last.dtype == np.float16
    np.testing.assert_allclose(half.last, cached.last, rtol=2**-10, atol=1e-5)
    same(replace(half, last=cached.last), cached)


def test_what_float16_cannot_hold_is_refused(tmp_path):
    new, old, head = toy_models()
    layer = old.layer
    old.layer = lambda i, h: 1e6 * layer(i, h) if i == old.n_layers - 1 else layer(i, h)
    with pytest.raises(ValueError, match="dtype: expected values that float16 can hold, found .*e"):
        toy_pass((new, old, head), path=tmp_path / "pair.safetensors", dtype="float16")
    assert not (tmp_path / "pair.safetensors").exists()
    assert np.abs(toy_pass((new, old, head)).last).max() > np.finfo(np.float16).max


# --- files


def test_files_hold_the_pass_and_the_last_layer_is_mapped(models, cached, tmp_path):
    path = tmp_path / "a" / "pair.safetensors"
    found = toy_pass(models, path=path)
    same(found, cached)
    assert isinstance(found.last, np.memmap) and not found.last.flags.writeable
    assert sorted(p.name for p in path.parent.iterdir()) == ["pair.last.npy", "pair.safetensors"]
    before = {p: p.read_bytes() for p in path.parent.iterdir()}
    same(toy_pass(models, path=path), Activations.load(path))
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before


def test_an_interrupted_pass_leaves_the_files_of_the_one_before(models, cached, tmp_path):
    path = tmp_path / "pair.safetensors"
    toy_pass(models, path=path)
    new, old, _ = models
    calls = []

    def head(h):
        calls.append(len(h))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return models[2](h)

    module = torch.nn.Module()
    module.forward = head
    with pytest.raises(KeyboardInterrupt):
        toy_pass((new, old, module), toy_windows(seed=1), path=path)
    same(Activations.load(path), cached)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *[("pair.safetensors", size) for size in (0, 5, 5000, -1)],
        *[("pair.last.npy", size) for size in (0, 5, 5000, -1)],
    ],
)
def test_cut_files_are_refused(cached, tmp_path, name, size):
    cached.save(tmp_path / "pair.safetensors")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"pair.safetensors: expected whole files of activations"):
        Activations.load(tmp_path / "pair.safetensors")


def test_a_whole_file_is_read_and_foreign_and_absent_ones_are_refused(cached, tmp_path):
    path = tmp_path / "pair.safetensors"
    with pytest.raises(FileNotFoundError, match="pair.safetensors: expected activations"):
        Activations.load(path)
    cached.save(path)
    same(Activations.load(path), cached)
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="foreign or truncated"):
        Activations.load(path)
    cached.save(path)
    last_path(path).unlink()
    with pytest.raises(FileNotFoundError, match="expected activations, found none"):
        Activations.load(path)


# --- windows and models of the settings


def test_models_that_expect_the_same_windows_share_them():
    specs = window_specs(SETTINGS, "wesad")
    assert len(set(specs.values())) == len(specs)
    assert {spec.modality for spec in specs.values()} == {"ecg", "ppg"}
    for key in SETTINGS.keys_of("wesad"):
        found = specs[window_key(SETTINGS, "wesad", key)]
        assert found.modality == SETTINGS.modality(key) and found.seconds == 60
    assert window_key(SETTINGS, "wesad", "ecg_small") == window_key(SETTINGS, "wesad", "ecg")
    assert window_key(SETTINGS, "wesad", "ecg") == "ecg"  # the first of them names the windows


def test_windows_and_models_of_a_direction(root):
    x_new, x_old, windows = load_windows(SETTINGS, root, "val")
    expected = toy_windows(seed=1)
    np.testing.assert_array_equal(x_new, expected.signals["ppg"])
    np.testing.assert_array_equal(x_old, expected.signals["ecg"])
    assert windows.labels.tolist() == expected.labels.tolist()
    model, original = frozen_backbone(SETTINGS, "ppg", windows), toy_models()[0].eval()
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model(x_new[:2]), original(x_new[:2]), **CLOSE)
    line = describe(SETTINGS, "ppg")
    assert "papagei tiny" in line and "weights data/pretrained/ppg.safetensors (sha256" in line


# --- a direction


def test_a_direction_is_what_lies_in_its_files(root):
    frozen = load_direction(SETTINGS, root)
    assert (frozen.m, frozen.l, list(frozen.activations)) == (5, 2, ["pair", "val", "test"])
    assert frozen.models == "hubert_ecg tiny -> papagei tiny"
    x_new, x_old, _ = load_windows(SETTINGS, root, "test")
    last, inputs = frozen.pairs("test"), frozen.pairs("test", "input")
    with torch.no_grad():
        states = frozen.old.hidden_states(x_old)
        torch.testing.assert_close(last.pooled, frozen.new.hidden_states(x_new)[6].mean(1), **CLOSE)
        logits = frozen.head(states[-1].mean(1))
    np.testing.assert_allclose(last.target, states[-1], **CLOSE)
    torch.testing.assert_close(inputs.target, states[2], **CLOSE)
    torch.testing.assert_close(frozen.activations["test"].logits, logits, **CLOSE)
    outputs, old_inputs = frozen.flattened(n=10)
    assert len(outputs) == frozen.new.n_layers and len(old_inputs) == frozen.old.n_layers
    assert {len(h) for h in outputs + old_inputs} == {10}
    assert list(load_direction(SETTINGS, root, splits=["val"]).activations) == ["val"]


def test_bridges_of_a_direction(root):
    frozen = load_direction(SETTINGS.override("bridge", SMALL), root)
    bridge, same_seed, other = (frozen.bridge(seed).bridge for seed in (0, 0, 1))
    tokens = {tuple(row) for row in frozen.activations["pair"].tokens[2].tolist()}
    assert {tuple(row) for row in bridge.prototypes.T.tolist()} <= tokens
    assert torch.equal(bridge.A, same_seed.A) and not torch.equal(bridge.A, other.A)
    normal = frozen.bridge(0, prototypes="random", rank=3).bridge
    assert not {tuple(row) for row in normal.prototypes.T.tolist()} & tokens and len(normal.A) == 3
    released = frozen.bridge(0, layout="released").bridge
    assert not released.reshaped  # which concerns LaBraM as old model alone
    model = frozen.bridge(0)
    x_new, _, _ = load_windows(SETTINGS, root, "test")
    torch.testing.assert_close(model.pooled(x_new), frozen.pairs("test").pooled, **CLOSE)


def test_absent_parts_of_a_direction_are_named(root):
    PATHS.positions(root).unlink()
    frozen = load_direction(SETTINGS, root)
    assert (frozen.m, frozen.l) == (None, None)
    with pytest.raises(FileNotFoundError, match=rf"{root}.json: .*dvc repro positions@{root}"):
        frozen.bridge(0)
    (PATHS.teacher(root) / "head.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="expected a teacher's head"):
        load_direction(SETTINGS, root)
    with pytest.raises(ValueError, match="direction: expected one of"):
        load_direction(SETTINGS, "wesad-ecg2eeg")


def test_a_fine_tuned_teacher_takes_the_place_of_the_old_model(root):
    _, old, head = toy_models(1)
    save_teacher(PATHS.teacher(root), head, old)
    everything = SETTINGS.override("teacher", {"train": {**SETTINGS.teacher.train, "ecg": "all"}})
    _, x_old, _ = load_windows(SETTINGS, root, "val")
    with torch.no_grad():
        expected = old.eval()(x_old[:2])
        for settings, tuned in ((everything, True), (SETTINGS, False)):
            found = load_direction(settings, root).old(x_old[:2])
            assert torch.allclose(found, expected, atol=1e-4) == tuned
