"""The interface of every frozen foundation model: a stem, then layers[0..L-1]; and its input."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class InputSpec:
    """What a backbone expects of its windows; `biox.data.conditioning` obeys it.

    Attributes
    ----------
    modality : str
        ``ecg``, ``ppg``, ``eeg`` or ``emg``.
    rate, seconds : float
        Sampling rate in Hz, and length of a window.
    unit : str
        Unit of the values that enter the stem.
    conditioning : str
        Name of the recipe in `biox.data.conditioning.RECIPES`.
    """

    modality: str
    channels: int
    rate: float
    seconds: float
    unit: str
    conditioning: str

    @property
    def samples(self) -> int:
        """Samples per channel of a window."""
        return round(self.seconds * self.rate)


@dataclass(frozen=True)
class Origin:
    """Where a published model comes from.

    Attributes
    ----------
    repository, licence : str
        Of the authors' code, and of code and weights, as noted in THIRD_PARTY.md.
    weights : str
        Where the authors publish them; empty if they do not.
    parameters : mapping
        Size -> (published number of parameters as text, who states it). Such a number counts the
        whole published file, with the heads of pretraining.
    """

    repository: str
    licence: str
    weights: str
    parameters: Mapping[str, tuple[str, str]]


class Backbone(nn.Module):
    """A model whose hidden states are [batch, tokens, features], whatever its inner layout.

    A subclass states what it reads, and implements `make`, which sets `n_layers`, `stem` and
    `layer`. Layer i maps the state at its input (i = 0: the stem's output) to that at its output.

    Parameters
    ----------
    size : str
        A key of `sizes`.
    n_channels : int, optional
        Channels of a window; those of `default_spec` if not given. No weight depends on it.
    seconds : float, optional
        Length of a window; that of `default_spec` if not given. No weight depends on it, where the
        class does not say so.

    Raises
    ------
    ValueError
        The model cannot read such windows.
    """

    sizes: Mapping[str, Mapping[str, object]]
    """Name of a size -> the arguments of `make`; ``rate`` among them replaces the default's, Hz."""
    origin: Origin
    default_spec: InputSpec
    input_spec: InputSpec
    n_layers: int

    # Windows that it reads.
    channel_counts: tuple[int, ...] = ()
    """Possible numbers of channels; empty: any."""
    least: int = 1
    """Samples that it needs."""
    patch: int = 1
    """Samples of which it reads whole multiples."""

    # What published files look like; read by `biox.backbones.weights`.
    wrappers: tuple[str, ...] = ()
    """Entries of the saved dict that may hold the weights; else the dict itself does."""
    key_prefixes: tuple[str, ...] = ()
    """What may stand before each key, to be taken off in this order."""
    others_unused: bool = False
    """Whether the authors' own loader leaves out the keys that lack a prefix which others have."""
    unused_prefixes: tuple[str, ...] = ()
    """Beginnings of keys that the file has and the model does without."""
    resizable: tuple[str, ...] = ()
    """Tables [1, rows, features] that may have another number of rows; see `resized`."""
    widen: str | None = None
    """How `resized` makes rows that a file lacks; None where a model has no such table."""
    switches: Mapping[tuple[str, ...], object] = {}
    """Settings that no weight shows, by where a file may state them; they must be so there."""
    ambiguous: bool = False
    """Whether a file that states none of `switches` may be another model."""

    # What the released BioX-Bridge code does differently with this model (page of deviations).
    released_layout_reshaped: bool = False
    """Whether it reshapes, instead of transposing, what a bridge writes into this model."""
    selector_axis: int = 1
    """Axis of [batch, tokens, features] that its position selection averages: 1 (tokens) or 2."""

    def __init__(self, size: str, n_channels: int | None = None, seconds: float | None = None):
        super().__init__()
        options = dict(self.sizes[size])
        default = self.default_spec
        self.input_spec = spec = replace(
            default,
            channels=default.channels if n_channels is None else n_channels,
            rate=options.pop("rate", default.rate),
            seconds=default.seconds if seconds is None else seconds,
        )
        if spec.channels < 1 or spec.channels not in (self.channel_counts or (spec.channels,)):
            known = " or ".join(map(str, self.channel_counts))
            expected = f"{known}, all that it reads" if known else "at least 1"
            raise ValueError(
                f"n_channels of {spec.modality}: expected {expected}, found {n_channels}"
            )
        if spec.samples < self.least or spec.samples % self.patch:
            patches = f", in whole patches of {self.patch / spec.rate:g} s" * (self.patch > 1)
            raise ValueError(
                f"seconds of {spec.modality}: expected at least {self.least} samples at "
                f"{spec.rate:g} Hz{patches}; found {spec.seconds:g} s"
            )
        self.make(**options)

    def make(self, **size: object) -> None:
        """Build the parts of one size, with random weights."""
        raise NotImplementedError

    def resized(self, key: str, table: Tensor) -> Tensor:
        """Make a file's table [1, rows, features] one of this model's number of rows."""
        raise NotImplementedError(key)

    def stem(self, x: Tensor) -> Tensor:
        """Embed windows [batch, channels, samples] as tokens h0 [batch, tokens, features]."""
        raise NotImplementedError

    def layer(self, i: int, h: Tensor) -> Tensor:
        """Run layer i on its input [batch, tokens, features]."""
        raise NotImplementedError

    def precompute(self, x: Tensor) -> Tensor:
        """Compute once what no training changes of windows; `stem` takes the result as well."""
        return x

    def run(self, h: Tensor, start: int, stop: int) -> Tensor:
        """Run layers start..stop-1; ``run(h, l, n_layers)`` is the tail behind position l.

        Raises
        ------
        ValueError
            There are no such layers.
        FloatingPointError
            The result is not finite; the message names the first such layer. In training mode
            nothing is checked: there the loss shows it.
        """
        if not 0 <= start <= stop <= self.n_layers:
            raise ValueError(
                f"run: expected 0 <= start <= stop <= {self.n_layers}, found {start} and {stop}"
            )
        out = h
        for i in range(start, stop):
            out = self.layer(i, out)
        if not self.training and not finite(out):
            self._locate(self._trace(h, start, stop), start)
        return out

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """The stem's output, then each layer's output: n_layers + 1 tensors."""
        states = list(self._trace(self.stem(x), 0, self.n_layers))
        if not finite(*states):
            self._locate(states, 0)
        return states

    def _trace(self, h: Tensor, start: int, stop: int) -> Iterator[Tensor]:
        yield h
        for i in range(start, stop):
            h = self.layer(i, h)
            yield h

    def _locate(self, states: Iterable[Tensor], start: int) -> NoReturn:
        """Name the first of the states, inputs of layers `start` and on, that is not finite."""
        i, h = next((i, h) for i, h in enumerate(states, start) if not finite(h))
        where = f"output of layer {i - 1}" if i > start else f"input of layer {i}"
        stem = " (the stem's output)" if i == 0 else ""
        raise FloatingPointError(
            f"{type(self).__name__}: expected finite activations, found NaN or infinity at the "
            f"{where}{stem}, in {int((~h.isfinite()).sum())} of {h.numel()} values"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Last layer's output [batch, tokens, features], before any final norm (paper: h_L)."""
        return self.run(self.stem(x), 0, self.n_layers)

    def for_seconds(self, seconds: float) -> "Backbone":
        """Return this model, weights shared, for windows of another length.

        For models without a weight that depends on the length: all but NormWear.
        """
        other = copy.copy(self)
        other.input_spec = replace(self.input_spec, seconds=seconds)
        return other

    @staticmethod
    def pool(h: Tensor) -> Tensor:
        """Mean over tokens: [batch, tokens, features] -> [batch, features]."""
        return h.mean(dim=1)

    @torch.no_grad()
    def token_shape(self, l: int) -> tuple[int, int]:
        """(tokens, features) at the input of layer l, measured on an empty window.

        ``l = n_layers`` is the last layer's output.
        """
        training = self.training
        self.eval()
        weight, spec = next(self.parameters()), self.input_spec
        x = torch.zeros(1, spec.channels, spec.samples, device=weight.device, dtype=weight.dtype)
        h = self.run(self.stem(x), 0, l)
        self.train(training)
        return h.shape[1], h.shape[2]


def check_windows(x: Tensor, spec: InputSpec) -> None:
    """Refuse windows that are not finite [batch, channels, samples] of `spec`, with ValueError."""
    expected = (spec.channels, spec.samples)
    if x.ndim != 3 or tuple(x.shape[1:]) != expected or not x.is_floating_point():
        raise ValueError(
            f"{spec.modality} stem: expected floating-point windows [batch, {spec.channels}, "
            f"{spec.samples}] ({spec.seconds:g} s at {spec.rate:g} Hz), "
            f"found {x.dtype} of shape {list(x.shape)}"
        )
    check_finite(x, spec)


def check_finite(x: Tensor, spec: InputSpec) -> None:
    """Refuse NaN and infinity in windows or scalograms [batch, ...]; name the first such window."""
    if not finite(x):
        broken = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"{spec.modality} stem: expected finite values, found NaN or infinity in "
            f"{len(broken)} of {len(x)} windows (the first: {broken[0]})"
        )


def finite(*tensors: Tensor) -> bool:
    """Whether no value is NaN or infinite; without values (device ``meta``, export): yes.

    A sum is quick and not finite if one value is so; if the sum overflowed, all values are checked.
    """
    if tensors[0].is_meta or torch.compiler.is_exporting():
        return True
    if torch.stack([x.sum() for x in tensors]).isfinite().all():
        return True
    return all(bool(x.isfinite().all()) for x in tensors)
