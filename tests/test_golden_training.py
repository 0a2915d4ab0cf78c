"""Five steps of all six published bridges, at full size, against the authors' training loop."""

import re

import numpy as np
import pytest
import torch
from fill import GOLDEN, fill, normals, samples, weight, windows
from torch import nn

from biox.backbones import build
from biox.bridge import BridgedModel, PrototypeBridge
from biox.losses import EQUATION_7
from biox.training import Pairs, fit_bridge

# Name in the golden files: name and size here, what is left as it is, factor after the raw scale.
MODELS = {
    "labram": ("labram", "base", (), 50 / 100),
    "hubertecg": ("hubert_ecg", "small", (), 1.0),
    "papagei": ("papagei", "small", (), 1.0),
    "normwear": ("normwear", "base", ("pos_embed",), 1.0),
}
TAGS = {"hubertecg": "hubertecg_small", "papagei": "papagei_s"}
SHAPES = {
    ("labram", "ISRUC"): (6, 6000),
    ("labram", "FOG"): (6, 600),
    ("hubertecg", "ISRUC"): (1, 3000),
    ("hubertecg", "WESAD"): (1, 6000),
    ("papagei", "WESAD"): (1, 7500),
    ("normwear", "FOG"): (3, 3, 388, 65),  # a ready scalogram
}
SECONDS = {"WESAD": 60, "ISRUC": 30, "FOG": 3}
# Losses, gradients (of the largest), parameters: a few times the noise of float32, which rectifiers
# near zero raise in PaPaGei as old model, and which nobody measured for NormWear.
TOLERANCES = {"losses": 2e-6, "losses_lr0.01": 2e-6, "grad": 1e-5, "param5": 1e-6,
              "param5_lr0.01": 5e-6}  # fmt: skip
NOISY = {
    "papagei": {"losses": 1e-4, "losses_lr0.01": 1e-3, "grad": 2e-4, "param5": 3e-4,
                "param5_lr0.01": 2e-2},
    "normwear": {"losses": 1e-5, "losses_lr0.01": 1e-3, "grad": 1e-4, "param5": 1e-5,
                 "param5_lr0.01": 1e-3},
}  # fmt: skip
DIRECTIONS = sorted(path.stem.removeprefix("bridge_") for path in GOLDEN.glob("bridge_*.npz"))
NAMES = ("A", "B", "prototypes")


def model_and_input(name, dataset, batch):
    kind, size, skip, factor = MODELS[name]
    model = fill(build(kind, size, seconds=SECONDS[dataset]), skip).requires_grad_(False).eval()
    tag = f"{TAGS.get(name, name)}:{dataset}:bridge"
    return model, windows(tag, (batch, *SHAPES[name, dataset]), factor)


def started(golden, reshaped):
    sizes = ("in_features", "out_features", "n_tokens", "rank", "n_prototypes")
    bridge = PrototypeBridge(*(int(golden[size]) for size in sizes), reshaped)
    with torch.no_grad():
        bridge.A.copy_(weight("A", bridge.A.shape))
        bridge.B.copy_(0.02 * normals("B", bridge.B.shape))
        bridge.prototypes.copy_(normals("prototypes", bridge.prototypes.shape))
    return bridge


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_outputs_losses_gradients_and_parameters(direction):
    golden = np.load(GOLDEN / f"bridge_{direction}.npz")
    layer = {side: int(re.search(r"\[(\d+)\]", golden[f"cfg_{side}"].item())[1])
             for side in ("inp", "out")}  # fmt: skip
    dataset, batch = golden["cfg_ds"].item(), int(golden["batch"])
    new, x = model_and_input(golden["cfg_new"].item(), dataset, batch)
    with torch.no_grad():
        pooled = new.pool(new.run(new.stem(x), 0, layer["inp"] + 1))
    np.testing.assert_allclose(pooled, golden["bridge_in"], rtol=1e-4, atol=3e-5)
    old, x = model_and_input(golden["cfg_old"].item(), dataset, batch)
    with torch.no_grad():
        target = old(x)
    head = nn.Linear(target.shape[2], 2)
    pairs = Pairs(torch.from_numpy(golden["bridge_in"]), target)
    tolerance = NOISY.get(golden["cfg_old"].item(), TOLERANCES)

    def fresh():
        bridge = started(golden, reshaped=golden["cfg_old"].item() == "labram")
        return BridgedModel(new, old, bridge, head, layer["inp"], layer["out"])

    model = fresh()
    EQUATION_7(model, pairs.pooled, pairs.target).backward()
    for name in NAMES:
        grad, want = getattr(model.bridge, name).grad, golden[f"grad_sample_{name}"]
        np.testing.assert_allclose(grad.norm(), golden[f"grad_norm_{name}"], rtol=1e-4)
        np.testing.assert_allclose(
            samples(grad), want, rtol=0, atol=tolerance["grad"] * grad.abs().max().item()
        )
    for key, lr in (("", float(golden["lr"])), ("_lr0.01", 0.01)):
        model, seen = fresh(), {}

        def watch(epoch, model, seen=seen):
            seen[epoch] = {n: getattr(model.bridge, n).detach().clone() for n in NAMES}

        fit = fit_bridge(model, pairs, pairs, lr, epochs=5, batch=batch, watch=watch)
        want = golden[f"losses{key}"]
        np.testing.assert_allclose(fit.train_loss[1:], want, rtol=0, atol=tolerance[f"losses{key}"])
        for name in NAMES:
            np.testing.assert_allclose(
                samples(seen[5][name]), golden[f"param5{key}_sample_{name}"],
                rtol=0, atol=tolerance[f"param5{key}"], err_msg=name,
            )  # fmt: skip
