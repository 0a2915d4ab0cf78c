"""One pass of the frozen models over a split, cached as one file.

Everything the method needs afterwards stands in that file: pooled output of every new layer, pooled
input of every old layer, the old model's last layer, the teacher's logits, and a sample of the old
model's tokens. No frozen model runs again below position l.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from biox.backbones.base import Backbone
from biox.cka import few_features
from biox.data.windows import Windows
from biox.files import written_whole

N_TOKENS_KEPT = 1024
"""Tokens of each old layer kept for prototypes to be drawn from."""


@dataclass(frozen=True)
class Activations:
    """Frozen activations of one split for one direction; row i is window i.

    Attributes
    ----------
    new : tuple of M Tensor, [n, d_m]
        Pooled output of every new layer on the new modality.
    old : tuple of L + 1 Tensor, [n, d_l]
        Pooled input of every old layer on the old modality, then the last layer's pooled output.
    last : Tensor, [n, N_L, d_L]
        Last layer of the old model, before any final norm, all tokens.
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
    """

    new: tuple[Tensor, ...]
    old: tuple[Tensor, ...]
    last: Tensor
    logits: Tensor
    tokens: tuple[Tensor, ...]
    labels: np.ndarray
    subjects: np.ndarray
    recordings: np.ndarray
    starts: np.ndarray
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pseudo_labels(self) -> np.ndarray:
        """The teacher's decisions on its own modality: argmax of the logits."""
        return self.logits.argmax(dim=1).numpy()

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all."""
        arrays = {f"new.{i}": x for i, x in enumerate(self.new)}
        arrays |= {f"old.{i}": x for i, x in enumerate(self.old)}
        arrays |= {f"tokens.{i}": x for i, x in enumerate(self.tokens)}
        arrays |= {"last": self.last, "logits": self.logits}
        arrays |= {"labels": torch.from_numpy(self.labels), "starts": torch.from_numpy(self.starts)}
        header = {
            "subjects": self.subjects.tolist(),
            "recordings": self.recordings.tolist(),
            "classes": list(self.classes),
            "source": self.source,
            "layers": [len(self.new), len(self.old) - 1],
        }
        arrays = {name: x.contiguous() for name, x in arrays.items()}
        with written_whole(path) as part:
            save_file(arrays, part, metadata={"activations": json.dumps(header, sort_keys=True)})

    @classmethod
    def load(cls, path: Path | str) -> "Activations":
        """Read cached activations.

        Raises
        ------
        FileNotFoundError
            The file is absent.
        ValueError
            It holds no activations, or is cut short.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected cached activations, found nothing")
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})["activations"])
                n_new, n_old = header["layers"]
                get = file.get_tensor
                return cls(
                    new=tuple(get(f"new.{i}") for i in range(n_new)),
                    old=tuple(get(f"old.{i}") for i in range(n_old + 1)),
                    last=get("last"),
                    logits=get("logits"),
                    tokens=tuple(get(f"tokens.{i}") for i in range(n_old)),
                    labels=get("labels").numpy(),
                    subjects=np.array(header["subjects"], dtype=str),
                    recordings=np.array(header["recordings"], dtype=str),
                    starts=get("starts").numpy(),
                    classes=tuple(header["classes"]),
                    source=header["source"],
                )
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: expected a whole file of activations, found a foreign or truncated one "
                f"({error})"
            ) from None


@torch.no_grad()
def compute_activations(
    windows: Windows,
    new: Backbone,
    old: Backbone,
    head: nn.Linear,
    batch: int = 32,
    device: str = "cpu",
) -> Activations:
    """Run both frozen models once over the windows.

    Raises
    ------
    FloatingPointError
        A layer gives values that are not finite; the message names it.
    """
    x_new = torch.from_numpy(windows.signals[new.input_spec.modality])
    x_old = torch.from_numpy(windows.signals[old.input_spec.modality])
    new, old, head = (model.eval().to(device) for model in (new, old, head))
    parts: dict[str, list[Tensor]] = {}
    tokens: list[list[Tensor]] = [[] for _ in range(old.n_layers)]
    per_window = max(1, -(-N_TOKENS_KEPT // len(windows)))
    generator = torch.Generator().manual_seed(0)
    batches = list(torch.arange(len(windows)).split(batch))
    for rows in tqdm(batches, desc="frozen activations", disable=None):
        for i, h in enumerate(new.hidden_states(x_new[rows].to(device))[1:]):
            parts.setdefault(f"new.{i}", []).append(new.pool(h).cpu())
        states = old.hidden_states(x_old[rows].to(device))
        for i, h in enumerate(states):
            parts.setdefault(f"old.{i}", []).append(old.pool(h).cpu())
        for kept, h in zip(tokens, states, strict=False):
            pick = torch.randint(h.shape[1], (len(rows), per_window), generator=generator)
            kept.append(h.cpu()[torch.arange(len(rows))[:, None], pick].flatten(0, 1))
        parts.setdefault("last", []).append(states[-1].cpu())
        parts.setdefault("logits", []).append(head(old.pool(states[-1])).cpu())
    whole = {name: torch.cat(chunks) for name, chunks in parts.items()}
    return Activations(
        new=tuple(whole[f"new.{i}"] for i in range(new.n_layers)),
        old=tuple(whole[f"old.{i}"] for i in range(old.n_layers + 1)),
        last=whole["last"],
        logits=whole["logits"],
        tokens=tuple(_thinned(torch.cat(chunks), generator) for chunks in tokens),
        labels=windows.labels,
        subjects=windows.subjects,
        recordings=windows.recordings,
        starts=windows.starts,
        classes=windows.classes,
        source=windows.source,
    )


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


def _thinned(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """At most `N_TOKENS_KEPT` of the tokens [any, features], from all over."""
    kept = torch.randperm(len(tokens), generator=generator)[:N_TOKENS_KEPT]
    return tokens[kept.sort().values]
