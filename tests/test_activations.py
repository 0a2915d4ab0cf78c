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
    last_path,
    layer_input,
    load_direction,
    load_windows,
    window_key,
    window_specs,
)
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


def test_float16_rounds_the_last_layer_alone_and_refuses_what_it_cannot_hold(cached, tmp_path):
    (new, old, head), layer, path = toy_models(), toy_models()[1].layer, tmp_path / "pair"
    half = toy_pass((new, old, head), path=path, dtype="float16")
    assert half.last.dtype == np.float16
    np.testing.assert_allclose(half.last, cached.last, rtol=2**-10, atol=1e-5)
    same(replace(half, last=cached.last), cached)
    old.layer = lambda i, h: 1e6 * layer(i, h) if i == old.n_layers - 1 else layer(i, h)
    with pytest.raises(ValueError, match="dtype: expected values that float16 can hold, found .*e"):
        toy_pass((new, old, head), dtype="float16")


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


def test_a_pass_that_fails_leaves_the_files_of_the_one_before(models, cached, tmp_path):
    path, broken = tmp_path / "pair.safetensors", toy_windows(seed=1)
    toy_pass(models, path=path)
    broken.signals["ecg"][-1] = np.nan  # in the last batch
    with pytest.raises(ValueError, match="expected finite values"):
        toy_pass(models, broken, path=path)
    same(Activations.load(path), cached)


@pytest.mark.parametrize("size", [0, 5, 5000, -1])
@pytest.mark.parametrize("name", ["pair.safetensors", "pair.last.npy"])
def test_cut_foreign_and_absent_files_are_refused(cached, tmp_path, name, size):
    path, part = tmp_path / "pair.safetensors", tmp_path / name
    cached.save(path)
    same(Activations.load(path), cached)
    part.write_bytes(part.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"pair.safetensors: expected whole files of activations"):
        Activations.load(path)
    part.unlink()
    with pytest.raises(FileNotFoundError, match="pair.safetensors: expected activations, found"):
        Activations.load(path)
    save_file({"x": torch.zeros(3)}, path)
    last_path(path).touch()
    with pytest.raises(ValueError, match="foreign or truncated"):
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


# --- a direction


def test_a_direction_is_what_lies_in_its_files(root):
    frozen = load_direction(SETTINGS, root)
    assert (frozen.m, frozen.l, list(frozen.activations)) == (5, 2, ["pair", "val", "test"])
    assert frozen.models == "hubert_ecg tiny -> papagei tiny"
    line = describe(SETTINGS, "ppg")
    assert "papagei tiny" in line and "weights data/pretrained/ppg.safetensors (sha256" in line
    assert not any(p.requires_grad for p in [*frozen.new.parameters(), *frozen.old.parameters()])
    x_new, x_old, windows = load_windows(SETTINGS, root, "test")
    np.testing.assert_array_equal(x_new, toy_windows(seed=2).signals["ppg"])
    assert windows.labels.tolist() == toy_windows(seed=2).labels.tolist()
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
    assert not frozen.bridge(0, layout="released").bridge.reshaped  # that is LaBraM's alone
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
