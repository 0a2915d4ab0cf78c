"""Section `baselines` of params.yaml: how students are distilled."""

from dataclasses import dataclass

from biox.schema import check


@dataclass(frozen=True)
class Baselines:
    """Distillation of the teacher into a student on the new modality.

    Epochs and batch are those of the section `bridge`, learning rates those of `search`: one budget
    for all methods.

    Attributes
    ----------
    patience : int, optional
        A training ends after so many epochs in which neither agreement with the teacher on val nor
        the loss there has reached a new best; None: never.
    temperature : float
        T of KD: both sides' logits are divided by it (Hinton et al. 2015).
    contrast_weight : float
        Weight of InfoNCE in KD-Contrast, against 1 for the loss of KD.
    contrast_temperature : float
        By which the cosines of InfoNCE are divided.
    """

    patience: int | None = 2
    temperature: float = 2.0
    contrast_weight: float = 1.0
    contrast_temperature: float = 0.1

    def __post_init__(self):
        good = self.patience is None or self.patience > 0
        check(good, "patience", "a number of epochs above 0, or null", self.patience)
        for name in ("temperature", "contrast_weight", "contrast_temperature"):
            value = getattr(self, name)
            check(value > 0, name, "a number above 0", value)
