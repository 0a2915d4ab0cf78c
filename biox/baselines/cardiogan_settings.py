"""What CardioGAN's training takes: section `cardiogan` of params.yaml."""

from dataclasses import dataclass

from biox.schema import check


@dataclass(frozen=True)
class CardioGAN:
    """Size and training of CardioGAN (Sarkar & Etemad, AAAI 2021, arXiv 2010.00104).

    From the paper: the weights `alpha`, `beta` and `cycle`, Adam with a learning rate of 1e-4 that
    stays for 10 of 15 epochs and then falls linearly, batches of 128, segments of 4 s at 128 Hz.
    `PUBLISHED` holds those values; the defaults fit a laptop: networks a sixteenth as wide, few
    segments, and small batches with a learning rate that such short training needs. They were
    chosen by time and by the cycle loss on simulated windows, which reads no label.

    Attributes
    ----------
    directions : tuple of str
        Transfers that get this baseline. In the paper it is WESAD ECG -> PPG alone.
    width : float
        Factor of all numbers of filters; 1: as published.
    epochs, batch : int
    lr : float
    alpha, beta, cycle : float
        Weights of the time-domain and frequency-domain adversarial losses and of cycle consistency.
    seconds, rate : float
        Length of a segment, and its sampling rate in Hz.
    segments : int, optional
        At most so many of each modality in an epoch, drawn anew for each, and on *val*, evenly
        spread; None: all.
    """

    directions: tuple[str, ...] = ("wesad-ecg2ppg",)
    width: float = 0.0625
    epochs: int = 6
    batch: int = 8
    lr: float = 2e-3
    alpha: float = 3.0
    beta: float = 1.0
    cycle: float = 30.0
    seconds: float = 4.0
    rate: float = 128.0
    segments: int | None = 384

    def __post_init__(self):
        for name in ("epochs", "batch", "lr", "seconds", "rate"):
            check(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        for name in ("alpha", "beta", "cycle"):
            check(getattr(self, name) >= 0, name, "a weight of at least 0", getattr(self, name))
        check(0 < self.width <= 1, "width", "a share in (0, 1]", self.width)
        good = self.segments is None or self.segments > 0
        check(good, "segments", "a number above 0, or null", self.segments)
        whole = float(self.seconds * self.rate)
        check(whole.is_integer(), "seconds", f"whole samples at {self.rate:g} Hz", self.seconds)
        # Shorter than a window of the Fourier transform there is no spectrum to judge.
        check(whole >= 128, "seconds", "segments of at least 128 samples", self.seconds)
        distinct = len(set(self.directions)) == len(self.directions)
        check(distinct, "directions", "each once", list(self.directions))

    @property
    def samples(self) -> int:
        """Samples of a segment."""
        return round(self.seconds * self.rate)


PUBLISHED = CardioGAN(width=1.0, epochs=15, batch=128, lr=1e-4, segments=None)
"""As in the paper."""
