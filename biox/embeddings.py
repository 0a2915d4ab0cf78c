"""Where a bridge puts windows in the old model's last layer, beside where their own signal does."""

from pathlib import Path

import pandas as pd
import torch

from biox.bridge import BridgedModel
from biox.case import Case
from biox.files import written_whole


@torch.no_grad()
def representations(case: Case, bridge: Path | str) -> pd.DataFrame:
    """Pooled last layer of the old model for every test window, true and bridged.

    Parameters
    ----------
    case : Case
    bridge : path
        Folder of a trained bridge.

    Returns
    -------
    DataFrame
        Two rows a window: ``which`` (true: from the old modality; bridged: from the new one),
        ``subject label class``, then the features ``h 0``, ``h 1``, ...
    """
    model = BridgedModel.load(bridge, case.new, case.old, case.head)
    test = case.cached["test"]
    parts = test.new[model.m].split(64)
    bridged = torch.cat([model.old.pool(model.last_layer(x)) for x in parts])
    frames = []
    for which, h in {"true": test.old[-1], "bridged": bridged}.items():
        features = pd.DataFrame(h.numpy()).add_prefix("h ")
        names = [test.classes[i] for i in test.labels]
        about = {"which": which, "subject": test.subjects, "label": test.labels, "class": names}
        frames.append(pd.DataFrame(about).join(features))
    return pd.concat(frames, ignore_index=True)


def save(path: Path | str, frame: pd.DataFrame) -> None:
    """Write representations as csv, whole or not at all."""
    with written_whole(path) as part:
        frame.to_csv(part, index=False, float_format="%.6g")
