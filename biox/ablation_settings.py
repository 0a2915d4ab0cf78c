"""What the ablations vary: section `ablations` of params.yaml."""

from dataclasses import dataclass, field
from typing import Literal

from biox.schema import check

Loss = Literal["cosine", "mae", "infonce"]
Align = Literal["last", "input"]
DType = Literal["float32", "float16", "bfloat16"]


def _everywhere() -> dict[Loss, tuple[Align, ...]]:
    return {loss: ("last", "input") for loss in ("cosine", "mae", "infonce")}


@dataclass(frozen=True)
class Ablations:
    """One thing at a time; all else as in section `bridge`.

    Attributes
    ----------
    direction : str
        The paper's: WESAD, labels in PPG, none in ECG.
    rank, n_prototypes : tuple of int
        Sizes of bridges (figures 4a and 4b).
    share : tuple of float
        Shares of the paired windows (figure 4c).
    loss : dict
        For each loss the places where it compares, as `bridge.align`.
    prototypes : tuple of str
        What prototypes start from, as `bridge.prototypes`.
    dtype : tuple of str
        Types in which last layers are stored, as `activations.dtype`.
    map_share : float
        Share of the paired and the val windows that each bridge of the map of positions sees.
    map_seeds : int
        So many of the seeds for every pair of layers; the positions of Table 2 get all of them.
    """

    direction: str = "wesad-ppg2ecg"
    rank: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    n_prototypes: tuple[int, ...] = (5, 10, 25, 50, 100, 200)
    share: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    loss: dict[Loss, tuple[Align, ...]] = field(default_factory=_everywhere)
    prototypes: tuple[Literal["tokens", "random"], ...] = ("tokens", "random")
    dtype: tuple[DType, ...] = ("float32", "float16", "bfloat16")
    map_share: float = 0.1
    map_seeds: int = 1

    def __post_init__(self):
        for name in ("rank", "n_prototypes", "share", "prototypes", "dtype"):
            values = getattr(self, name)
            check(len(set(values)) == len(values) > 0, name, "distinct values", list(values))
        for name in ("rank", "n_prototypes"):
            check(min(getattr(self, name)) >= 1, name, "sizes above 0", list(getattr(self, name)))
        for name, shares in (("share", self.share), ("map_share", (self.map_share,))):
            good = min(shares) > 0 and max(shares) <= 1
            check(good, name, "shares above 0 and at most 1", list(shares))
        for loss, places in self.loss.items():
            distinct = len(set(places)) == len(places) > 0
            check(distinct, f"loss.{loss}", "distinct places", list(places))
        check(len(self.loss) > 0, "loss", "at least one loss", self.loss)
        check(self.map_seeds >= 1, "map_seeds", "at least 1", self.map_seeds)
