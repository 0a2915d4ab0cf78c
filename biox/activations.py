"""What the frozen models make of a split's windows: a small file, and the last layer beside it.

Everything the method needs afterwards stands there: pooled output of every new layer, pooled input
of every old layer, the old model's last layer, the teacher's logits, and a sample of the old
model's tokens. No frozen model runs again below position l. `biox.one_pass` fills these files.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from biox.backbones.base import Backbone
from biox.cka import few_features
from biox.data.windows import Windows
from biox.files import written_whole
from biox.frozen import array_shapes, frozen_blocks
from biox.rows import AbsentRows, Rows, StoredRows, key_of, write_rows


@dataclass(frozen=True)
class Activations:
    """Frozen activations of one split for one direction; row i is window i.

    Attributes
    ----------
    new : tuple of M Tensor, [n, d_m]
        Pooled output of every new layer on the new modality.
    old : tuple of L Tensor, [n, d_l]
        Pooled input of every old layer on the old modality.
    last : Tensor or Rows, [n, N_L, d_L]
        Last layer of the old model, before any final norm, all tokens. From a file, rows are read
        when they are asked for: ``last[rows]``.
    logits : Tensor, [n, classes]
        The teacher's answers on the old modality.
    tokens : tuple of L Tensor, [<= 1024, d_l]
        Tokens at the input of every old layer, drawn over all windows with a fixed seed.
    labels : ndarray, [n]
    subjects, recordings : ndarray of str, [n]
    starts : ndarray, [n]
        Seconds.
    classes : tuple of str
    source : str
        Which data, as in `Windows.source`.
    made_of : mapping
        Digests of models, windows, settings and code (`biox.one_pass.made_of`); may be empty.
    """

    new: tuple[Tensor, ...]
    old: tuple[Tensor, ...]
    last: Tensor | Rows
    logits: Tensor
    tokens: tuple[Tensor, ...]
    labels: np.ndarray
    subjects: np.ndarray
    recordings: np.ndarray
    starts: np.ndarray
    classes: tuple[str, ...]
    source: str
    made_of: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pseudo_labels(self) -> np.ndarray:
        """The teacher's decisions on its own modality: argmax of the logits."""
        return self.logits.argmax(dim=1).numpy()

    @property
    def pooled_last(self) -> Tensor:
        """Pooled last layer of the old model [n, d_L]: what the teacher's head reads."""
        return torch.cat([Backbone.pool(rows) for rows in self.last.split(256)])

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor], last: Tensor | Rows, windows: Windows, **more):
        """Put together arrays, named as in `biox.frozen.array_shapes`, and what the windows know.

        ``more``: further fields.
        """
        layers = {kind: sum(name.startswith(f"{kind}.") for name in arrays) for kind in _KINDS}
        return cls(
            **{kind: tuple(arrays[f"{kind}.{i}"] for i in range(n)) for kind, n in layers.items()},
            last=last,
            logits=arrays["logits"],
            **{name: getattr(windows, name) for name in _OF_WINDOWS},
            **more,
        )

    def save(self, path: Path | str, dtype: str = "float32") -> None:
        """Write both files, each whole or not at all: `path`, and `last_path` with the last layer.

        Parameters
        ----------
        path : path
        dtype : {"float32", "float16", "bfloat16"}
            In which the last layer is stored; all else is float32.
        """
        key = key_of(dict(self.made_of) or {"content": self._digest(dtype)})
        self.save_small(path, key, {"dtype": dtype, "shape": list(self.last.shape)})
        with written_whole(last_path(path)) as part:
            write_rows(part, self.last, dtype, key)

    def save_small(self, path: Path | str, key: str, last: Mapping[str, object]) -> None:
        """Write all but the last layer, of which `last` says what the file beside it holds."""
        arrays = {f"{kind}.{i}": x for kind in _KINDS for i, x in enumerate(getattr(self, kind))}
        arrays |= {"logits": self.logits, "labels": torch.from_numpy(self.labels)}
        arrays |= {"starts": torch.from_numpy(self.starts)}
        header = {
            "subjects": self.subjects.tolist(),
            "recordings": self.recordings.tolist(),
            "classes": list(self.classes),
            "source": self.source,
            "layers": [len(self.new), len(self.old)],
            "last": dict(last),
            "key": key,
            "made_of": dict(self.made_of),
        }
        arrays = {name: x.contiguous() for name, x in arrays.items()}
        with written_whole(path) as part:
            save_file(arrays, part, metadata={"activations": json.dumps(header, sort_keys=True)})
            with open(part, "rb+") as file:
                os.fsync(file.fileno())  # on the disk before its name says that it is whole

    def _digest(self, dtype: str) -> str:
        state = hashlib.sha256(dtype.encode())
        for x in (*self.new, *self.old, self.logits, *self.last.split(256)):
            state.update(x.contiguous().numpy())
        return state.hexdigest()

    @classmethod
    def load(cls, path: Path | str, made_of: Mapping[str, str] | None = None) -> "Activations":
        """Read cached activations; of the last layer nothing is read yet.

        Parameters
        ----------
        path : path
        made_of : mapping, optional
            What they must have been made from.

        Raises
        ------
        FileNotFoundError
            A file is absent.
        ValueError
            It holds no activations, is cut short, or was made from something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected cached activations, found nothing")
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})["activations"])
                n_new, n_old = header["layers"]
                get = file.get_tensor  # maps the file: layers that nobody reads cost no memory
                content = dict(
                    new=tuple(get(f"new.{i}") for i in range(n_new)),
                    old=tuple(get(f"old.{i}") for i in range(n_old)),
                    logits=get("logits"),
                    tokens=tuple(get(f"tokens.{i}") for i in range(n_old)),
                    labels=get("labels").numpy(),
                    subjects=np.array(header["subjects"], dtype=str),
                    recordings=np.array(header["recordings"], dtype=str),
                    starts=get("starts").numpy(),
                    classes=tuple(header["classes"]),
                    source=header["source"],
                    made_of=header["made_of"],
                )
                dtype, shape = header["last"]["dtype"], tuple(header["last"]["shape"])
                key = header["key"]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: expected a whole file of activations, found a foreign or truncated one "
                f"({error})"
            ) from None
        if made_of is not None:
            check_made_of(path, made_of, content["made_of"])
        if dtype is None:
            return cls(last=AbsentRows(path, shape), **content)
        return cls(last=StoredRows.open(last_path(path), dtype, shape, key), **content)


_KINDS = ("new", "old", "tokens")
_OF_WINDOWS = ("labels", "subjects", "recordings", "starts", "classes", "source")


def last_path(path: Path | str) -> Path:
    """File of the last layer beside a file of activations: ``pair.last.npy``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.last.npy")


def check_made_of(path: Path | str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Compare what activations should be made of with what they are made of.

    Raises
    ------
    ValueError
        Something differs; the message names it.
    """
    different = sorted(k for k in {*expected, *found} if expected.get(k) != found.get(k))
    if different:
        raise ValueError(
            f"{path}: expected activations made from these models, windows and settings, "
            f"found other ones of: {', '.join(different)}"
        )


def compute_activations(
    windows: Windows,
    new: Backbone,
    old: Backbone,
    head: nn.Linear,
    batch: int = 32,
    device: str = "cpu",
) -> Activations:
    """Run both frozen models once over the windows and keep all in memory.

    `biox.one_pass.cache_activations` does the same to files.

    Raises
    ------
    FloatingPointError
        A layer gives values that are not finite; the message names it.
    """
    shapes = array_shapes(new, old, head.out_features, len(windows))
    arrays = {name: torch.empty(shape) for name, shape in shapes.items()}
    for _, block in frozen_blocks(windows, new, old, head, batch, device):
        for name, (row, values) in block.items():
            arrays[name][row : row + len(values)] = values
    return Activations.of(arrays, arrays.pop("last"), windows)


@torch.no_grad()
def layer_input(backbone: Backbone, x: Tensor, l: int, batch: int = 32) -> Tensor:
    """All tokens at the input of layer l (h_l): [n, channels, samples] -> [n, N_l, d_l]."""
    backbone.eval()
    device = next(backbone.parameters()).device
    parts = x.split(batch)
    return torch.cat([backbone.run(backbone.stem(p.to(device)), 0, l).cpu() for p in parts])


@torch.no_grad()
def flattened_states(backbone: Backbone, x: Tensor, batch: int = 32) -> list[np.ndarray]:
    """Every hidden state with its tokens flattened, as `biox.cka.few_features` [n, <= n].

    Goes layer by layer, so that one state of all windows is in memory, not all of them.

    Returns
    -------
    list of L + 1 arrays
        The stem's output, then each layer's.
    """
    h = layer_input(backbone, x, 0, batch)
    device = next(backbone.parameters()).device
    states = [few_features(h.flatten(1).numpy())]
    for i in range(backbone.n_layers):
        h = torch.cat([backbone.layer(i, part.to(device)).cpu() for part in h.split(batch)])
        states.append(few_features(h.flatten(1).numpy()))
    return states
