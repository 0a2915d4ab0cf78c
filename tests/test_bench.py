"""The plain computations of the benchmark are the same computations; tables state what is true."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fill import windows
from torch.nn import functional as F

from biox import bench
from biox.backbones import BACKBONES, build
from biox.backbones.wavelet import RickerScalogram
from biox.report import models

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted(BACKBONES))
@torch.no_grad()
def test_plain_forward_computes_the_same(name):
    torch.manual_seed(0)
    backbone = build(name, "tiny", seconds=3)
    x = bench.some_windows(backbone, 2)
    torch.testing.assert_close(bench.plain_forward(backbone, x), backbone(x), rtol=1e-4, atol=1e-5)


def test_attention_is_written_out_only_within():
    q, k, v = (windows(name, (2, 3, 5, 8)) for name in "qkv")
    fused = F.scaled_dot_product_attention
    with bench.written_out_attention():
        assert F.scaled_dot_product_attention is not fused
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v), fused(q, k, v))
        with pytest.raises(ValueError, match="expected neither mask nor dropout"):
            F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert F.scaled_dot_product_attention is fused
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("samples", [12, 45, 390])  # kernels shorter, even and odd at the cap
def test_plain_scalogram_is_that_of_the_stem(samples):
    x = windows("emg", (2, 3, samples)).double()
    expected = bench.plain_scalogram(x.numpy())
    np.testing.assert_allclose(RickerScalogram(samples).double()(x), expected, atol=1e-5)


def test_wavelet_is_far_faster_than_the_loop():
    x, scalogram = windows("emg", (4, 3, 390)), RickerScalogram(390)
    calls = [lambda: scalogram(x), lambda: bench.plain_scalogram(x.double().numpy())]
    ours, loop = bench.fastest(calls, seconds=1.0)
    assert loop > 5 * ours  # measured: above 20, on a quiet machine


def test_fastest_takes_the_shortest_of_several():
    waits = iter([0.03, 0.01, 0.02, 0.04])

    def call():
        import time

        time.sleep(next(waits))

    (shortest,) = bench.fastest([call], seconds=0.035)
    assert 0.01 <= shortest < 0.02


def test_cost_is_that_of_the_model():
    cost = bench.measure("papagei", "small", 2)
    weights = sum(p.numel() for p in build("papagei", "small").parameters()) * 4
    assert weights < cost.memory < 1e9 and 0 < cost.seconds < 30


def test_origins_are_those_of_third_party():
    lines = (ROOT / "THIRD_PARTY.md").read_text().replace("**", "").splitlines()
    for row in models.origins().itertuples():
        line = next(line for line in lines if row.repository in line)
        assert row.licence in line


def test_tables_have_every_published_size():
    sizes, shapes = models.inputs_and_sizes(), models.token_shapes()
    assert list(sizes.index) == list(shapes.index) == models.published_sizes()
    assert ("hubert_ecg", "large") in sizes.index and "tiny" not in sizes.index.get_level_values(1)
    assert sizes.loc[("labram", "base"), "window"] == "6 EEG channels, 200 Hz, 30 s, uV/100"
    assert shapes.loc[("hubert_ecg", "small"), "tokens x features"] == "l=0-8: 93 x 512"
    papagei = build("papagei", "small")
    last = "l={}: {} x {}".format(18, *papagei.token_shape(18))
    assert shapes.loc[("papagei", "small"), "tokens x features"].endswith(last)


@pytest.mark.parametrize("name, size", [("papagei", "small"), ("normwear", "base")])
def test_shapes_without_memory_are_the_true_ones(name, size):
    backbone = models.without_memory(name, size)
    assert all(value.is_meta for value in backbone.parameters())
    kept = sum(p.numel() for p in backbone.parameters())
    assert models.inputs_and_sizes().loc[(name, size), "parameters kept"] == f"{kept:,}"
