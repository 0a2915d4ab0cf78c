"""One pass: equal to the models, resumable after any kill, never reused for something else."""

import io
import os
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_training import toy_windows
from torch import nn
from toy_cache import BATCH5, ROOT, bytes_in, same, silent, store, toy_models

from biox import backbones, one_pass
from biox.activations import Activations, compute_activations, last_path
from biox.backbones import build
from biox.bridge import BridgedModel
from biox.config import Storage, load_settings
from biox.identity import made_of, model_digest, signal_digest
from biox.one_pass import cache_activations
from biox.rows import DTYPES, AbsentRows, RecomputedRows, SignalRows, StoredRows, array_header
from biox.sizes import disk_estimate, rounding_errors
from biox.training import Pairs, fit_bridge, initial_bridge, mean_loss


@pytest.fixture(scope="module")
def models():
    return toy_models()


@pytest.fixture(scope="module")
def direct(models):
    return compute_activations(toy_windows(), *models, batch=5)


def test_files_hold_what_the_models_compute(models, direct, tmp_path):
    found = store(tmp_path / "pair.safetensors", models)
    same(found, direct)
    assert sorted(bytes_in(tmp_path)) == ["pair.last.npy", "pair.safetensors"]
    mapped = np.load(tmp_path / "pair.last.npy", mmap_mode="r")  # anybody can open it
    np.testing.assert_array_equal(mapped, direct.last.numpy())
    with torch.no_grad():
        exact = models[1](torch.from_numpy(toy_windows().signals["ecg"][5:10]))
    torch.testing.assert_close(found.last[5:10], exact, rtol=1e-4, atol=1e-5)


def test_neither_batch_nor_number_of_blocks_changes_the_sample_of_tokens(models, direct):
    other = compute_activations(toy_windows(), *models, batch=24)
    for x, y in zip(direct.tokens, other.tokens, strict=True):
        assert len(x) == 1024
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_rows_are_indexed_like_a_tensor(models, direct, tmp_path):
    last = store(tmp_path / "pair.safetensors", models).last
    assert len(last) == 24 and last.shape == tuple(direct.last.shape)
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    mask = np.arange(24) % 3 == 0
    for index in (shuffled, shuffled[:4].tolist(), [3, 3, 1], slice(20, 99), slice(0, 0), mask, -1):
        assert torch.equal(last[index], direct.last[index])
    assert last[2].dtype == torch.float32
    for found, expected in zip(last.split(7), direct.last.split(7), strict=True):
        assert torch.equal(found, expected)
    assert isinstance(last.to("cpu"), StoredRows)
    with pytest.raises(IndexError):
        last[[24]]


def test_training_from_the_disk_is_training_from_memory(models, direct, tmp_path):
    stored = store(tmp_path / "pair.safetensors", models)
    fits = []
    for cached in (direct, stored):
        bridge = initial_bridge(
            cached.new[5].shape[1], models[1].token_shape(2), 4, 6, 0, cached.tokens[2]
        )
        model = BridgedModel(*models[:2], bridge, models[2], 5, 2)
        pairs = Pairs(cached.new[5], cached.last).to("cpu")
        fits.append(fit_bridge(model, pairs, pairs, 1e-2, epochs=2, batch=7))
    assert fits[0] == fits[1]


def test_the_same_is_reused_and_anything_else_is_made_anew(models, tmp_path, monkeypatch):
    path, said = tmp_path / "pair.safetensors", []
    first = store(path, models)
    before = path.stat().st_mtime_ns
    store(path, models, settings=replace(BATCH5, batch=8), say=said.append)
    assert "kept" in said[0] and path.stat().st_mtime_ns == before
    windows, (new, old, head) = toy_windows(), models
    shifted = replace(windows, signals=windows.signals | {"ppg": windows.signals["ppg"] + 1e-6})
    renamed = replace(windows, subjects=windows.subjects[::-1])
    changed = {
        "new model": (toy_models(1)[0], old, head, windows, BATCH5),
        "old model": (new, toy_models(1)[1], head, windows, BATCH5),
        "head": (new, old, toy_models(1)[2], windows, BATCH5),
        "new windows": (new, old, head, shifted, BATCH5),
        "labels and names": (new, old, head, renamed, BATCH5),
        "last layer": (new, old, head, windows, replace(BATCH5, dtype="float16")),
    }
    for what, (*others, data, settings) in changed.items():
        made = made_of(data, *others, settings)
        with pytest.raises(ValueError, match=f"found other ones of: {what}$"):
            Activations.load(path, made)
        fresh = cache_activations(tmp_path / "b.safetensors", data, *others, settings, say=silent)
        assert fresh.made_of == made != first.made_of
    monkeypatch.setattr("biox.identity.FORMAT", "0")
    with pytest.raises(ValueError, match="other ones of: format"):
        Activations.load(path, made_of(windows, *models, BATCH5))


def test_last_layers_of_another_pass_are_refused(models, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        store(tmp_path / f"{name}.safetensors", toy_models(seed))
    (tmp_path / "b.last.npy").replace(tmp_path / "a.last.npy")
    with pytest.raises(ValueError, match=r"a.last.npy: expected .* same pass .* another pass's"):
        Activations.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["pair.safetensors", "pair.last.npy"])
@pytest.mark.parametrize("size", [0, 5000, -1])
def test_cut_files_are_refused_and_made_again(models, direct, tmp_path, name, size):
    store(tmp_path / "pair.safetensors", models)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{name}: expected .* truncated"):
        Activations.load(tmp_path / "pair.safetensors")
    same(store(tmp_path / "pair.safetensors", models), direct)


def test_a_missing_last_layer_is_named(models, tmp_path):
    store(tmp_path / "pair.safetensors", models)
    last_path(tmp_path / "pair.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="pair.last.npy: expected the old model's last"):
        Activations.load(tmp_path / "pair.safetensors")


def test_models_are_told_apart_by_more_than_weights():
    sizes = build("ecg_fm", "tiny", seconds=5)
    before = model_digest(sizes)
    for module in sizes.modules():
        if hasattr(module, "norm_first"):
            module.norm_first = not module.norm_first
            assert model_digest(sizes) != before
            module.norm_first = not module.norm_first
    sizes.hidden_states(torch.zeros(1, sizes.input_spec.channels, sizes.input_spec.samples))
    assert model_digest(sizes.train()) == before  # neither running nor a mode is a change
    assert model_digest(sizes.double()) != before


@pytest.mark.parametrize("name", sorted(backbones.BACKBONES))
def test_running_a_model_does_not_change_its_digest(name):
    model = build(name, "tiny", seconds=3)
    before = model_digest(model)
    spec = model.input_spec
    with torch.no_grad():
        model.eval()(torch.zeros(2, spec.channels, spec.samples))
    assert model_digest(model) == before
    assert model_digest(build(name, "tiny", seconds=3)) != before  # other random weights


Disk = namedtuple("Disk", "total used free")


@pytest.mark.parametrize(
    ("share", "advice"),
    [
        (0.9, "activations.dtype: float16 or bfloat16 or activations.last: recomputed"),
        (0.4, "activations.last: recomputed"),
        (0.0, None),
    ],
)
def test_a_full_disk_is_refused_beforehand(models, tmp_path, monkeypatch, share, advice):
    e = disk_estimate(*models[:2], 24)
    small = 2 * (e.pooled + e.tokens)
    free = int(share * e.last) + (small if advice else 0)
    monkeypatch.setattr(one_pass.shutil, "disk_usage", lambda _: Disk(0, 0, free))
    with pytest.raises(OSError, match=f"expected {e.last + small:,} free bytes .*{free:,}") as said:
        store(tmp_path / "pair.safetensors", models)
    assert ("pair.safetensors" in str(said.value)) and "\n" not in str(said.value)
    assert (f"; {advice} in params.yaml would fit" in str(said.value)) == (advice is not None)
    assert list(tmp_path.iterdir()) == []
    if advice:  # and it would
        last = {"last": "recomputed"} if share < 0.5 else {"dtype": "float16"}
        store(tmp_path / "pair.safetensors", models, settings=replace(BATCH5, **last))


def test_the_estimate_is_what_lies_there(models, tmp_path):
    said = []
    store(tmp_path / "pair.safetensors", models, say=said.append)
    e = disk_estimate(*models[:2], 24)
    written = sum(len(content) for content in bytes_in(tmp_path).values())
    assert e.total < written < 1.02 * e.total  # headers, labels and names
    assert f"{e.total / 1e6:,.1f} MB on the disk" in said[0]
    assert "about" in said[1] and "s more" in said[1]
    half, none = (
        disk_estimate(*models[:2], 24, "float16"),
        disk_estimate(*models[:2], 24, last="no"),
    )
    assert 2 * half.last == e.last and none.last == 0 and half.pooled == e.pooled


def test_pooled_features_at_published_sizes_take_a_hundredth():
    """Of the six released bridges; closed form: sum of features / sum of tokens x features."""
    text = (ROOT / "biox" / "report" / "deviations.yaml").read_text(encoding="utf-8")
    shares = {}
    with torch.device("meta"):
        for name, s in yaml.safe_load(text)["released_bridges"].items():
            new, old = (build(*s[side], seconds=s["seconds"]) for side in ("new", "old"))
            e = disk_estimate(new, old, 1000)
            x = [torch.zeros(1, m.input_spec.channels, m.input_spec.samples) for m in (new, old)]
            after, before = ([h.shape[1:] for h in m.hidden_states(y)]
                             for m, y in zip((new, old), x, strict=True))  # fmt: skip
            assert e.pooled == 4000 * sum(d for _, d in after[1:] + before[:-1])
            assert e.full == 4000 * sum(n * d for n, d in after + before)
            assert e.last == 4000 * np.prod(old.token_shape(old.n_layers))
            shares[name] = e.pooled / e.full
    assert max(shares.values()) <= 0.01


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_two_bytes_err_as_much_as_rounding_may(models, direct, tmp_path, dtype, bound):
    settings = replace(BATCH5, dtype=dtype)
    found = store(tmp_path / "pair.safetensors", models, settings=settings)
    exact, rounded = direct.last, found.last[:]
    assert torch.equal(rounded, exact.to(DTYPES[dtype][0]).float())
    error = (rounded - exact).abs() / exact.abs().clamp_min(2**-14)  # float16's normal numbers
    assert bound / 4 < error.max() <= bound
    table = rounding_errors(direct.last, batch=7)
    assert table.loc["float32"].tolist()[1:] == pytest.approx([0, 0], abs=1e-12)
    row = table.loc[dtype]
    norm = (rounded - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert row["largest relative error"] == pytest.approx(norm.max().item(), rel=1e-3)
    assert 0 < row["1 - smallest cosine"] <= bound**2 / 2
    assert row["MB"] == table.loc["float32", "MB"] / 2
    for x, y in zip(found.new + found.old, direct.new + direct.old, strict=True):
        assert torch.equal(x, y)  # all else stays as it is


def test_what_float16_cannot_hold_is_refused(models, direct, tmp_path):
    large = replace(direct, last=direct.last * 1e6)
    with pytest.raises(ValueError, match="dtype: expected values that float16 can hold, found"):
        large.save(tmp_path / "pair.safetensors", dtype="float16")
    large.save(tmp_path / "pair.safetensors", dtype="bfloat16")
    found = Activations.load(tmp_path / "pair.safetensors").last[:]
    torch.testing.assert_close(found, large.last, rtol=2**-8, atol=0)


def test_the_last_layer_recomputed_is_the_stored_one(models, direct, tmp_path):
    stored = store(tmp_path / "pair.safetensors", models)
    settings = replace(BATCH5, last="recomputed")
    absent = store(tmp_path / "pair.safetensors", models, settings=settings)
    assert sorted(bytes_in(tmp_path)) == ["pair.safetensors"]
    assert isinstance(absent.last, AbsentRows) and absent.last.shape == stored.last.shape
    with pytest.raises(ValueError, match="pair.safetensors: expected stored last layers.*recompu"):
        absent.last[:2]
    windows = toy_windows()
    windows.save(tmp_path / "windows.safetensors")
    x = SignalRows(tmp_path / "windows.safetensors", "ecg")
    assert signal_digest(x) == absent.made_of["old windows"]
    last = RecomputedRows(models[1], x, absent.last.shape)
    rows = torch.tensor([7, 3, 20])
    torch.testing.assert_close(last[rows], direct.last[rows], rtol=1e-4, atol=1e-5)
    bridge = initial_bridge(direct.new[5].shape[1], models[1].token_shape(2), 4, 6, 0)
    model = BridgedModel(*models[:2], bridge, models[2], 5, 2)
    losses = [mean_loss(model, Pairs(direct.new[5], h)) for h in (direct.last, last)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_recomputed_layers_are_attached_from_the_settings(models, tmp_path, monkeypatch):
    from biox import experiment

    settings = load_settings(ROOT / "params.yaml")
    d = settings.direction("wesad-ppg2ecg")
    paths = experiment.Paths(data=tmp_path)
    monkeypatch.setattr(experiment, "PATHS", paths)
    windows, (ppg, ecg, head) = toy_windows(), toy_models()
    old = ppg if d.old == "ppg" else ecg
    new = ecg if d.old == "ppg" else ppg
    head = nn.Linear(old.token_shape(old.n_layers)[1], 2)
    windows.save(paths.windows(d.dataset, "val"))
    path = paths.activations("wesad-ppg2ecg", "val")
    storage = Storage(last="recomputed", batch=5)
    cache_activations(path, windows, new, old, head, storage, say=silent)
    monkeypatch.setattr(experiment, "teacher_of", lambda *_: (old, head))
    found = experiment.activations_of(settings, "wesad-ppg2ecg", "val")
    with torch.no_grad():
        exact = old(torch.from_numpy(windows.signals[d.old][[4, 2]]))
    torch.testing.assert_close(found.last[[4, 2]], exact, rtol=1e-4, atol=1e-5)
    other = toy_models(1)[0 if d.old == "ppg" else 1]
    monkeypatch.setattr(experiment, "teacher_of", lambda *_: (other, head))
    with pytest.raises(ValueError, match="found other ones of: old model"):
        experiment.activations_of(settings, "wesad-ppg2ecg", "val")


def test_windows_of_another_length_are_refused(models):
    windows = toy_windows()
    short = replace(windows, signals={name: x[..., :900] for name, x in windows.signals.items()})
    with pytest.raises(ValueError, match="PaPaGei: expected windows of 1 channels and 1250 samp"):
        compute_activations(short, *models)


def resident():
    """Bytes of this process in memory, mapped files included (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells memory this way")
def test_memory_does_not_grow_with_the_number_of_windows(tmp_path):
    """A file of 4 GB without blocks on the disk: what was read does not stay in memory."""
    shape, key = (16384, 256, 256), "0" * 64
    path, head = tmp_path / "pair.last.npy", array_header("float32", shape)
    with open(path, "wb") as file:
        file.write(head)
        file.seek(4 * int(np.prod(shape)), io.SEEK_CUR)
        file.write(key.encode())
    if path.stat().st_blocks * 512 > 2**20:
        pytest.skip("this file system has no sparse files")
    rows = StoredRows.open(path, "float32", shape, key)
    generator = torch.Generator().manual_seed(0)
    batches = torch.randperm(len(rows), generator=generator)[:384].split(16)
    rows[batches[0]]
    before, most = resident(), 0
    for batch in batches:
        assert rows[batch].shape == (16, 256, 256)
        most = max(most, resident() - before)
    assert most < 2**24  # a batch is 4 MiB; what was read is 96 MiB


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "float8"}, "activations.dtype: expected one of"),
        ({"last": "none"}, "activations.last: expected one of"),
        ({"batch": 0}, "activations.batch: expected a number above 0, found 0"),
    ],
)
def test_settings_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        load_settings(ROOT / "params.yaml").override("activations", values)
