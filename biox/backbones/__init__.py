"""Frozen foundation models behind one interface; `build` is the way in."""

from pathlib import Path

from biox.backbones.base import Backbone, InputSpec
from biox.backbones.cbramod import CBraMod, CBraModECG
from biox.backbones.ecg_fm import ECGFM
from biox.backbones.hubert_ecg import HubertECG
from biox.backbones.labram import LaBraM
from biox.backbones.normwear import NormWear
from biox.backbones.papagei import PaPaGei
from biox.backbones.plain_cnn import PlainCNN
from biox.backbones.weights import load, save

__all__ = ["BACKBONES", "Backbone", "InputSpec", "build", "load", "save"]

BACKBONES = {
    "labram": LaBraM,
    "hubert_ecg": HubertECG,
    "papagei": PaPaGei,
    "normwear": NormWear,
    "ecg_fm": ECGFM,
    "cbramod": CBraMod,
    "cbramod_ecg": CBraModECG,
    "plain_cnn": PlainCNN,
}


def build(
    name: str,
    size: str = "base",
    checkpoint: Path | str | None = None,
    n_channels: int | None = None,
    seconds: float | None = None,
    widen: str | None = None,
) -> Backbone:
    """Make a backbone in evaluation mode, with random weights or those of a file.

    Parameters
    ----------
    name, size : str
        A key of `BACKBONES`, and one of the ``sizes`` of its class: ``tiny``, and those published.
    checkpoint : path, optional
        File of weights: as the model's authors publish it, or a safetensors file of `save`. It is
        read strictly, and nothing in it is run: see `load`. Without it weights are random (torch's
        global seed).
    n_channels, seconds : int and float, optional
        Channels and length of a window; the backbone's defaults if not given.
    widen : str, optional
        For labram: see `biox.backbones.labram.widen_time_embed`.

    Raises
    ------
    ValueError
        Unknown name or size, a window that the model cannot read, `widen` for a model with nothing
        to widen, or a file that does not fit, is damaged, is no checkpoint or wants something run.
    FileNotFoundError
        The checkpoint is absent.

    Examples
    --------
    >>> build("labram", "tiny", seconds=3).token_shape(0)
    (19, 100)
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone: expected one of {sorted(BACKBONES)}, found {name!r}")
    kind = BACKBONES[name]
    if size not in kind.sizes:
        raise ValueError(f"{name}: expected a size of {sorted(kind.sizes)}, found {size!r}")
    backbone = kind(size, n_channels, seconds)
    if widen is not None:
        if kind.widen is None:
            raise ValueError(f"{name}: expected no `widen`, it has no such table; found {widen!r}")
        backbone.widen = widen
    if checkpoint is not None:
        load(backbone, checkpoint)
    return backbone.eval()
