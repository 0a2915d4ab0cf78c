"""Backbones of published sizes: hidden states are those of the authors' code."""

import numpy as np
import pytest
import torch
from fill import GOLDEN, fill, samples, windows

from biox.backbones import build

# golden file: name, size, seconds, tag and shape of the input, its scale in the model's unit
PUBLISHED = {
    "labram_ISRUC": ("labram", "base", 30, "labram:ISRUC", (2, 6, 6000), 50 / 100),
    "labram_FOG": ("labram", "base", 3, "labram:FOG", (2, 6, 600), 50 / 100),
    "hubertecg_small_WESAD": ("hubert_ecg", "small", 60, "hubertecg_small:WESAD", (2, 1, 6000), 1),
    "hubertecg_small_ISRUC": ("hubert_ecg", "small", 30, "hubertecg_small:ISRUC", (2, 1, 3000), 1),
    "hubertecg_base_ISRUC": ("hubert_ecg", "base", 30, "hubertecg_base:ISRUC", (2, 1, 3000), 1),
    "papagei_s_WESAD": ("papagei", "small", 60, "papagei_s:WESAD", (2, 1, 7500), 1),
    "normwear_FOG": ("normwear", "base", 3, "normwear:FOG", (2, 3, 3, 388, 65), 1),
    "cbramod_16x10": ("cbramod", "base", 10, "cbramod:16x10", (2, 16, 10, 200), 50 / 100),
    "cbramod_1x30": ("cbramod", "base", 30, "cbramod:1x30", (2, 1, 30, 200), 50 / 100),
    "ecgfm_preln": ("ecg_fm", "base", 10, "ecgfm:5000", (2, 12, 5000), 1),
    "ecgfm_postln": ("ecg_fm", "base_postnorm", 10, "ecgfm:5000", (2, 12, 5000), 1),
}
# Layout of the golden numbers, where it is not [batch, tokens, features].
INNER = {"papagei": lambda h: h.transpose(1, 2), "ecg_fm": lambda h: h.transpose(0, 1)}
TOLERANCE = 2e-6  # relative; measured: at most 5e-7, of PaPaGei 0


@pytest.mark.parametrize("file", PUBLISHED)
@torch.inference_mode()
def test_hidden_states_are_those_of_the_authors_code(file):
    name, size, seconds, tag, shape, scale = PUBLISHED[file]
    backbone = fill(build(name, size, n_channels=shape[1], seconds=seconds), skip=("pos_embed",))
    golden, x = np.load(GOLDEN / f"layers_{file}.npz"), windows(tag, shape, scale)
    np.testing.assert_allclose(samples(x), golden["model_input_sample"], rtol=1e-6)
    states = backbone.hidden_states(x.flatten(2) if name == "cbramod" else x)
    assert len(states) == backbone.n_layers + 1 == golden["n_layers"] + 1
    for key, h in zip(["stem", *range(len(states) - 1)], states, strict=True):
        assert h.numel() == np.prod(golden[f"shape_{key}"])
        inner = INNER.get(name, lambda h: h)(h).contiguous()
        found = np.concatenate([samples(inner), h.mean(1).double().numpy().ravel()])
        expected = np.concatenate([golden[f"sample_{key}"], golden[f"mean_{key}"].ravel()])
        assert np.linalg.norm(found - expected) < TOLERANCE * np.linalg.norm(expected), key
