"""Five steps of all six published bridges, at full size, against the authors' training loop."""

import re

import numpy as np
import pytest
import torch
from fill import GOLDEN, fill, samples, windows
from test_bridge import PUBLISHED, golden_bridge
from test_published_backbones import PUBLISHED as BACKBONES
from torch import nn

from biox.backbones import build
from biox.bridge import BridgedModel
from biox.training import Pairs, cosine_loss, train_bridge

# Losses, gradients (of the largest), parameters: a few times the noise of float32, which rectifiers
# near zero raise in PaPaGei as old model, and which nobody measured for NormWear.
TOLERANCES = {"losses": 2e-6, "grad": 1e-5, "param5": 4e-6}
NOISY = {
    "papagei": {"losses": 1e-4, "grad": 2e-4, "param5": 3e-4},
    "normwear": {"losses": 1e-5, "grad": 1e-4, "param5": 1e-5},
}
NAMES = ("A", "B", "prototypes")


def model_and_input(name, dataset, batch):
    name = {"hubertecg": "hubertecg_small", "papagei": "papagei_s"}.get(name, name)
    kind, size, seconds, tag, (_, *shape), scale = BACKBONES[f"{name}_{dataset}"]
    model = fill(build(kind, size, seconds=seconds), skip=("pos_embed",)).requires_grad_(False)
    return model, windows(f"{tag}:bridge", (batch, *shape), scale)


SLOW = ["fog_emg2eeg"]  # NormWear at full size behind the bridge
DIRECTIONS = [pytest.param(d, marks=pytest.mark.slow) if d in SLOW else d for d in PUBLISHED]


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
    one = Pairs(pairs.pooled[:1], target[:1])  # val decides nothing here
    tolerance = NOISY.get(golden["cfg_old"].item(), TOLERANCES)

    bridge = golden_bridge(golden, reshaped=golden["cfg_old"].item() == "labram")
    model = BridgedModel(new, old, bridge, head, layer["inp"], layer["out"])
    cosine_loss(model.last_layer(pairs.pooled), pairs.target).backward()
    for name in NAMES:
        grad, want = getattr(model.bridge, name).grad, golden[f"grad_sample_{name}"]
        np.testing.assert_allclose(grad.norm(), golden[f"grad_norm_{name}"], rtol=1e-4)
        largest = grad.abs().max().item()
        np.testing.assert_allclose(samples(grad), want, rtol=0, atol=tolerance["grad"] * largest)
    # The loop keeps the best epoch; what it evaluated last are the parameters after five steps.
    seen = {}
    model.bridge.register_forward_hook(
        lambda bridge, *_: seen.update({k: p.clone() for k, p in bridge.named_parameters()})
    )
    how = {"lr": float(golden["lr"]), "epochs": 5, "batch_size": batch, "seed": 0}
    losses = train_bridge(model, pairs, one, **how)["train"][1:]
    np.testing.assert_allclose(losses, golden["losses"], rtol=0, atol=tolerance["losses"])
    for name in NAMES:
        found, want = samples(seen[name].detach()), golden[f"param5_sample_{name}"]
        np.testing.assert_allclose(found, want, rtol=0, atol=tolerance["param5"], err_msg=name)
