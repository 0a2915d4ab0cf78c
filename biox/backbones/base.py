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
    channels : int
    rate : float
        Sampling rate in Hz.
    seconds : float
        Length of a window.
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
    repository : str
        Of the authors' code.
    licence : str
        Of code and weights, as noted in THIRD_PARTY.md.
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

    A subclass sets `input_spec` and `n_layers` and implements `stem` and `layer`.
    Layer i maps the state at its input (i = 0: the stem's output) to the state at its output.

    Attributes
    ----------
    sizes : mapping
        Name of a size -> its widths.
    origin : Origin
    """

    sizes: Mapping[str, object]
    origin: Origin
    input_spec: InputSpec
    n_layers: int

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
            The result is not finite; the message names the first layer where that is so. In
            training mode nothing is checked: there the loss shows it.
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
        if not 0 <= l <= self.n_layers:
            raise ValueError(f"token_shape: expected 0 <= l <= {self.n_layers}, found {l}")
        training = self.training
        self.eval()
        weight = next(self.parameters())
        spec = self.input_spec
        x = torch.zeros(1, spec.channels, spec.samples, device=weight.device, dtype=weight.dtype)
        h = self.run(self.stem(x), 0, l)
        self.train(training)
        return h.shape[1], h.shape[2]


def configured(
    default: InputSpec,
    n_channels: int | None,
    seconds: float | None,
    *,
    channels_free: bool = True,
    least: int = 1,
    patch: int = 1,
) -> InputSpec:
    """Return a backbone's default window with another number of channels or another length.

    Parameters
    ----------
    channels_free : bool
        False for models that read a fixed number of channels.
    least, patch : int
        Samples that the model needs, and of which it reads whole multiples.

    Raises
    ------
    ValueError
        The model cannot read such a window.
    """
    channels = default.channels if n_channels is None else n_channels
    spec = replace(
        default, channels=channels, seconds=default.seconds if seconds is None else seconds
    )
    if channels < 1 or (channels != default.channels and not channels_free):
        expected = "at least 1" if channels_free else f"{default.channels}, all that it reads"
        raise ValueError(f"n_channels of {spec.modality}: expected {expected}, found {channels}")
    if spec.samples < least or spec.samples % patch:
        patches = f", in whole patches of {patch / spec.rate:g} s" if patch > 1 else ""
        raise ValueError(
            f"seconds of {spec.modality}: expected at least {least} samples at {spec.rate:g} Hz"
            f"{patches}; found {spec.seconds:g} s"
        )
    return spec


def check_windows(x: Tensor, spec: InputSpec) -> None:
    """Refuse windows that are not [batch, channels, samples] of `spec`; nothing is padded or cut.

    Raises
    ------
    ValueError
        Rank, channels, samples or number type differ, or a value is NaN or infinite.
    """
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
