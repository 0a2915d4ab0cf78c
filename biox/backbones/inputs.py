"""What may enter a stem: the configured window, and the refusal of any other."""

from dataclasses import replace

from torch import Tensor

from biox.backbones.base import InputSpec, finite


def configured(
    default: InputSpec,
    n_channels: int | None,
    seconds: float | None,
    channels_free: bool = True,
) -> InputSpec:
    """Return a backbone's default window with another number of channels or another length.

    Parameters
    ----------
    default : InputSpec
    n_channels : int or None
        None keeps the default.
    seconds : float or None
        None keeps the default.
    channels_free : bool
        False for models that read a fixed number of channels.

    Raises
    ------
    ValueError
        The window is empty, or the model does not read that many channels.
    """
    channels = default.channels if n_channels is None else n_channels
    seconds = default.seconds if seconds is None else seconds
    if channels != default.channels and not channels_free:
        raise ValueError(
            f"n_channels: expected {default.channels}, all that this {default.modality} model "
            f"reads, found {channels}"
        )
    spec = replace(default, channels=channels, seconds=seconds)
    if channels < 1 or spec.samples < 1:
        raise ValueError(
            f"window: expected at least one channel and one sample at {spec.rate:g} Hz, "
            f"found {channels} channels of {seconds:g} s"
        )
    return spec


def whole_patches(spec: InputSpec, patch: int, name: str) -> int:
    """Count the patches of `patch` samples in a window of `spec`.

    Raises
    ------
    ValueError
        The window is no whole number of patches.
    """
    if spec.samples % patch:
        raise ValueError(
            f"{name}: expected windows of whole patches, {patch / spec.rate:g} s each, "
            f"found {spec.seconds:g} s"
        )
    return spec.samples // patch


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
    refuse_broken(x, spec)


def refuse_broken(x: Tensor, spec: InputSpec) -> None:
    """Refuse NaN and infinity in windows or scalograms [batch, ...].

    Raises
    ------
    ValueError
        The message names the first window that has any, and how many have.
    """
    if not finite(x):
        broken = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"{spec.modality} stem: expected finite values, found NaN or infinity in "
            f"{len(broken)} of {len(x)} windows (the first: {broken[0]})"
        )
