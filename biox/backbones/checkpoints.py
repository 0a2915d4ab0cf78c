"""Weights of a backbone on disk: one safetensors file, written whole and read strictly."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from biox.backbones.base import Backbone
from biox.files import written_whole


def save(backbone: Backbone, path: Path | str) -> None:
    """Write all parameters and buffers of a backbone to one safetensors file."""
    tensors = {key: value.contiguous() for key, value in backbone.state_dict().items()}
    with written_whole(path) as part:
        save_file(tensors, part)


def load(backbone: Backbone, path: Path | str) -> None:
    """Read what `save` wrote into a backbone of the same architecture; change nothing on failure.

    Raises
    ------
    FileNotFoundError
        The file is absent.
    ValueError
        The file is no safetensors file or is cut short, or a key is missing, unknown or of another
        shape or number type.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a safetensors file, found nothing")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file, found a foreign or truncated one ({error})"
        ) from None
    own = backbone.state_dict()
    for key in sorted(own.keys() | tensors.keys()):
        expected, found = (
            f"{t[key].dtype} of shape {list(t[key].shape)}" if key in t else "no such key"
            for t in (own, tensors)
        )
        if expected != found:
            raise ValueError(f"{path}: {key}: expected {expected}, found {found}")
    backbone.load_state_dict(tensors)
