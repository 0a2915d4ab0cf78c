"""Section `table3` of params.yaml: which models are put in the new model's place, and how."""

from dataclasses import dataclass, field

from biox.schema import check


@dataclass(frozen=True)
class Swap:
    """A backbone that takes the new model's place.

    Attributes
    ----------
    name, size : str
        Of `biox.backbones.build`.
    published : str
        The published size (or, of biox's own CNN, the large one) that it stands for.
    lr : float
        Peak learning rate of its pretraining: that of section `pretrain`, and less for the wider
        HuBERT-ECG. Seen before that: variance explained on held-out simulated windows, no transfer.
    """

    name: str
    size: str
    published: str
    lr: float

    def __post_init__(self):
        check(self.lr > 0, "lr", "a number above 0", self.lr)


def _swaps() -> dict[str, Swap]:
    return {
        "HuBERT-ECG small": Swap("hubert_ecg", "tiny", "small", 5e-3),
        "HuBERT-ECG base": Swap("hubert_ecg", "tiny_base", "base", 2e-3),
        "HuBERT-ECG large": Swap("hubert_ecg", "tiny_large", "large", 2e-3),
        "ECG-FM": Swap("ecg_fm", "tiny_100hz", "base", 5e-3),
        "plain CNN": Swap("plain_cnn", "tiny", "base", 5e-3),
    }


@dataclass(frozen=True)
class Table3:
    """The swapped models of one direction, all pretrained alike.

    Attributes
    ----------
    direction : str
    models : mapping
        What the table calls a model -> what is built.
    minutes : float
        Of simulated signal to pretrain on.
    epochs : int
        Of pretraining. Batch, mask, weights and seed are those of section `pretrain`.
    every : int
        Distillation reads every so-manieth window of *pair* and *val*, because all of a model
        learns, which takes long. Windows of 60 s each 5 s overlap: in every fifth, each second
        of the signal is still seen twice or more.
    lr : float
        Learning rate of bridges and of distillation, without a search.
    kd_seeds : int
        So many of the seeds also distil.
    """

    direction: str = "wesad-ppg2ecg"
    models: dict[str, Swap] = field(default_factory=_swaps)
    minutes: float = 300.0
    epochs: int = 6
    every: int = 5
    lr: float = 1e-3
    kd_seeds: int = 2

    def __post_init__(self):
        check(len(self.models) > 0, "models", "at least one", dict(self.models))
        for name in ("minutes", "epochs", "every", "lr", "kd_seeds"):
            check(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
