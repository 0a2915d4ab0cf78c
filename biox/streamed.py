"""CKA of flattened layers over all paired windows, without keeping any of them."""

import numpy as np
import torch

from biox.config import Settings
from biox.data.windows import Windows
from biox.experiment import PATHS, device_of, frozen_backbone, teacher_of
from biox.positions import flattened_cka


def streamed_pair(settings: Settings, name: str) -> np.ndarray:
    """Debiased CKA of every pair of layers of a direction [M, L]; see `flattened_cka`.

    For `biox.positions.select_positions`. Runs both models over *pair* once more; in memory are one
    batch of one layer and a small matrix a layer, whatever the number of windows.
    """
    d, device = settings.direction(name), device_of(settings)
    windows = Windows.load(PATHS.windows(d.dataset, "pair"), [d.old, d.new])
    old, _ = teacher_of(settings, name, windows)
    new = frozen_backbone(settings, windows, d.new)
    signals = (torch.from_numpy(windows.signals[modality]) for modality in (d.new, d.old))
    return flattened_cka(new.to(device), old.to(device), *signals)
