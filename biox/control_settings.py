"""How much is spent on negative controls and audits: section `controls` of params.yaml."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Controls:
    """Settings of `biox.controls`, `biox.audits` and `biox.report.calibration`.

    Attributes
    ----------
    seeds_used : int
        How many of `seeds`, from the first on, each control that trains a bridge is repeated for.
    shuffles : int
        Bridges on shuffled pairs: windows are dealt out so often. One of them may lie on either
        side of chance by luck; their mean may not.
    epochs : int, optional
        Of all bridges of controls. Then a bridge on whole inputs trains as long, to compare them
        with. None: as many as the bridge itself has.
    positions_in : tuple of str
        Directions where bridges at other positions are trained, which is slow in some.
    random_positions : int
        Pairs (m, l) drawn there besides the selected one.
    selections : int
        Position selections with permuted pseudo-labels.
    permutations : int
        Linear heads fitted to permuted pseudo-labels.
    deals : int
        Times that the audits deal out windows, by protocol.
    bins : int
        Of confidence, for calibration errors and reliability diagrams.
    """

    seeds_used: int = 1
    shuffles: int = 5
    epochs: int | None = None
    positions_in: tuple[str, ...] = ()
    random_positions: int = 4
    selections: int = 5
    permutations: int = 20
    deals: int = 10
    bins: int = 15

    def __post_init__(self):
        least = {"seeds_used": 1, "shuffles": 1, "epochs": 1, "random_positions": 0}
        least |= {"selections": 1, "permutations": 1, "deals": 2, "bins": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name}: expected at least {lowest}, found {value}")
