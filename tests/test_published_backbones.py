"""Backbones of published sizes: names, shapes and hidden states are those of the authors' code."""

import json
import re

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
# manifest, name, size, seconds
MANIFESTS = [
    ("labram_ISRUC", "labram", "base", 30),
    ("labram_FOG", "labram", "base", 3),
    ("hubertecg_small", "hubert_ecg", "small", 60),
    ("hubertecg_base", "hubert_ecg", "base", 60),
    ("hubertecg_large", "hubert_ecg", "large", 60),
    ("papagei_s", "papagei", "small", 60),
    ("normwear", "normwear", "base", 3),
    ("cbramod", "cbramod", "base", 30),
    ("ecgfm", "ecg_fm", "base", 10),
    ("ecgfm", "ecg_fm", "base_postnorm", 10),
]
# Layout of the golden numbers, where it is not [batch, tokens, features].
INNER = {"papagei": lambda h: h.transpose(1, 2), "ecgfm": lambda h: h.transpose(0, 1)}
# Without effect in the published models, too: the first block's norm (the stem has just
# normalised), and a key's bias, which adds the same to all scores of a query: softmax drops it.
WITHOUT_EFFECT = re.compile(r"basicblock_list\.0\.bn1\.|\.k_(proj|norm)\.bias$")
LAYER = re.compile(r"(?:^|\.)(?:blocks|layers|basicblock_list|encoder_blocks)\.(\d+)\.")
TOLERANCE = 2e-6  # relative; measured: at most 5e-7, of PaPaGei 0


class Published:
    """A backbone filled by the recipe, its hidden states, and the golden numbers."""

    def __init__(self, file):
        name, size, seconds, tag, shape, scale = PUBLISHED[file]
        self.file = file
        self.backbone = build(name, size, n_channels=shape[1], seconds=seconds)
        fill(self.backbone.requires_grad_(False), skip=("pos_embed",))
        self.golden = np.load(GOLDEN / f"layers_{file}.npz")
        self.inner = INNER.get(file.split("_")[0], lambda h: h)
        x = windows(tag, shape, scale)
        np.testing.assert_allclose(samples(x), self.golden["model_input_sample"], rtol=1e-6)
        self.x = x.flatten(2) if name == "cbramod" else x
        with torch.inference_mode():
            self.states = self.backbone.hidden_states(self.x)

    def error(self, key, h):
        """Relative norm of the deviation of a hidden state from its golden numbers."""
        means = h.mean(1).double().numpy().ravel()
        found = np.concatenate([samples(self.inner(h).contiguous()), means])
        expected = [self.golden[f"sample_{key}"], self.golden[f"mean_{key}"].ravel()]
        expected = np.concatenate(expected)
        return np.linalg.norm(found - expected) / np.linalg.norm(expected)

    def error_behind(self, key):
        """Error of the one state that a parameter enters directly: the stem's or a layer's."""
        found = LAYER.search(key)
        if not found:
            return self.error("stem", self.backbone.stem(self.x))
        i = int(found[1])
        return self.error(i, self.backbone.layer(i, self.states[i]))


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request):
    return Published(request.param)


def test_hidden_states_are_those_of_the_authors_code(published):
    states, golden = published.states, published.golden
    assert len(states) == published.backbone.n_layers + 1 == golden["n_layers"] + 1
    for key, h in zip(["stem", *range(len(states) - 1)], states, strict=True):
        assert h.numel() == np.prod(golden[f"shape_{key}"])
        assert published.error(key, h) < TOLERANCE


def wrong_values(key, values):
    """Deleted; transposed or turned around; swapped with another of the same name or shape."""
    value = values[key]
    square = value.ndim > 1 and value.shape[0] == value.shape[1]
    twin = LAYER.sub(lambda m: m[0].replace(m[1], str(int(m[1]) + 1)), key)
    if twin == key or twin not in values or values[twin].shape != value.shape:
        twin = next((k for k in values if k != key and values[k].shape == value.shape), key)
    return {
        "deleted": torch.zeros_like(value),
        "transposed": value.transpose(0, 1) if square else value.flip(-1),
        "swapped": values[twin],
    }


# Of the models whose numbers notice wrong weights: one of how many weights is tried.
EVERY = {
    "labram_FOG": 1,
    "cbramod_16x10": 3,
    "papagei_s_WESAD": 5,
    "hubertecg_small_ISRUC": 5,
    "ecgfm_preln": 7,
    "ecgfm_postln": 7,
    "normwear_FOG": 17,
}


@pytest.mark.parametrize("published", EVERY, indirect=True)
@torch.inference_mode()
def test_golden_numbers_notice_wrong_weights(published):
    """Delete, transpose and swap one weight at a time; the state behind it must be off.

    Of most models only every n-th weight, in one of these ways.
    """
    every = EVERY[published.file]
    own = published.backbone.state_dict()
    right = {k: v.clone() for k, v in own.items() if v.is_floating_point() and k != "pos_embed"}
    unnoticed = set()
    for n, key in enumerate(list(right)[::every]):
        ways = list(wrong_values(key, right).items())
        for how, wrong in ways if every == 1 else [ways[n % len(ways)]]:
            own[key].copy_(wrong)
            if not torch.equal(wrong, right[key]) and published.error_behind(key) <= TOLERANCE:
                unnoticed.add((key, how))  # NaN counts as noticed
        own[key].copy_(right[key])
    assert {(key, how) for key, how in unnoticed if not WITHOUT_EFFECT.search(key)} == set()
    assert published.error("stem", published.backbone.stem(published.x)) < TOLERANCE


@pytest.mark.parametrize(("manifest", "name", "size", "seconds"), MANIFESTS)
def test_names_and_shapes_are_those_of_the_published_files(manifest, name, size, seconds):
    content = json.loads((GOLDEN / f"manifest_{manifest}.json").read_text())
    with torch.device("meta"):  # shapes without memory
        backbone = build(name, size, seconds=seconds)
    kept = {
        k: s for k, s in content["params"].items() if not k.startswith(backbone.unused_prefixes)
    }
    assert {key: list(value.shape) for key, value in backbone.state_dict().items()} == kept


def test_every_manifest_is_compared():
    paths = sorted(GOLDEN.glob("manifest_*.json"))
    assert {path.stem for path in paths} == {f"manifest_{manifest[0]}" for manifest in MANIFESTS}
