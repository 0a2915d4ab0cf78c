"""The prototype bridge and the bridged model (BioX-Bridge, section 3.2, equation 6)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from biox.backbones.base import Backbone

_RANDOM = Lock()  # torch's global generator is shared by all threads


class PrototypeBridge(nn.Module):
    """Low-rank map from one pooled vector to a weight of every prototype for every token.

    ``h~_l = Reshape(Pool(h_m) A B) P`` with d_m r + r N_l N_p + N_p d_l parameters (equation 6).
    The parameters keep the layout of the released code, so that its weights carry over.

    Parameters
    ----------
    in_features : int
        d_m, features of the new model's layer m.
    out_features : int
        d_l, features at the input of the old model's layer l.
    n_tokens : int
        N_l, tokens there.
    rank : int
        r.
    n_prototypes : int
        N_p.
    reshaped : bool
        True: what the released code does where LaBraM is the old model. It reads the bridge's
        [d_l, N_l] as [N_l, d_l] without transposing, so that a token mixes rows of other tokens
        and is no combination of prototypes (``layout: released`` in params.yaml).

    Attributes
    ----------
    A : Parameter, [r, d_m]
        Kaiming-uniform with a = sqrt(5).
    B : Parameter, [N_p * N_l, r]
        Zeros, so that training starts from the same output for every window.
    prototypes : Parameter, [d_l, N_p]
        P transposed. Standard normal; `initial` can draw them from tokens of the old model.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n_tokens: int,
        rank: int,
        n_prototypes: int,
        reshaped: bool = False,
    ):
        super().__init__()
        assert min(in_features, out_features, n_tokens, rank, n_prototypes) > 0
        self.n_tokens, self.n_prototypes, self.reshaped = n_tokens, n_prototypes, reshaped
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(n_prototypes * n_tokens, rank))
        self.prototypes = nn.Parameter(torch.randn(out_features, n_prototypes))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    @classmethod
    def initial(
        cls, *sizes: int, seed: int, tokens: Tensor | None = None, reshaped: bool = False
    ) -> PrototypeBridge:
        """Make an untrained bridge; the seed alone decides A and the prototypes.

        Parameters
        ----------
        *sizes : int
            d_m, d_l, N_l, r and N_p.
        seed : int
        tokens : Tensor, [any, d_l], optional
            Tokens of the old model at the input of layer l. Prototypes are drawn from them (the
            paper's text), without replacement where there are enough. Absent: standard normal
            prototypes (the released code).
        reshaped : bool
        """
        with _RANDOM, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            bridge = cls(*sizes, reshaped)
            if tokens is not None:
                n, n_p = len(tokens), bridge.n_prototypes
                rows = torch.randperm(n)[:n_p] if n >= n_p else torch.randint(n, (n_p,))
                bridge.prototypes.data.copy_(tokens[rows].T)
        return bridge

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled features [batch, d_m] to tokens [batch, N_l, d_l]."""
        weights = pooled @ self.A.T @ self.B.T  # [batch, N_p * N_l]
        weights = weights.view(len(pooled), self.n_prototypes, self.n_tokens)
        tokens = weights.transpose(1, 2) @ self.prototypes.T  # [batch, N_l, d_l]
        return tokens.transpose(1, 2).reshape(tokens.shape) if self.reshaped else tokens

    @property
    def n_parameters(self) -> int:
        """Trainable parameters: d_m r + r N_l N_p + N_p d_l."""
        return sum(p.numel() for p in self.parameters())


class BridgedModel(nn.Module):
    """New modality in, task out: ``y~ = g_old(f_old_{>l}(bridge(Pool(f_new_{<=m}(x_new)))))``.

    Parameters
    ----------
    new, old : Backbone
        Frozen.
    bridge : PrototypeBridge
    head : nn.Linear
        The teacher's head on the old model's mean-pooled last layer.
    m : int
        New layer (0-based) whose output is pooled into the bridge.
    l : int
        Old layer (0-based) whose input the bridge writes.
    """

    def __init__(
        self, new: Backbone, old: Backbone, bridge: PrototypeBridge, head: nn.Linear, m: int, l: int
    ):
        super().__init__()
        if not (0 <= m < new.n_layers and 0 <= l < old.n_layers):
            raise ValueError(
                f"BridgedModel: expected m in 0..{new.n_layers - 1}, l in 0..{old.n_layers - 1}, "
                f"found m = {m} and l = {l}"
            )
        self.new = new.eval().requires_grad_(False)
        self.old = old.eval().requires_grad_(False)
        self.head = head.requires_grad_(False)
        self.bridge, self.m, self.l = bridge, m, l

    def train(self, mode: bool = True) -> BridgedModel:
        """Change the mode of the bridge alone; the frozen models stay in evaluation mode."""
        self.training = mode
        self.bridge.train(mode)
        return self

    @torch.no_grad()
    def pooled(self, x: Tensor) -> Tensor:
        """Pool the output of layer m: x_new [batch, channels, samples] -> [batch, d_m]."""
        return self.new.pool(self.new.run(self.new.stem(x), 0, self.m + 1))

    def tail(self, tokens: Tensor) -> Tensor:
        """Run f_old_{>l}: tokens at layer l [batch, N_l, d_l] -> last layer [batch, N_L, d_L]."""
        return self.old.run(tokens, self.l, self.old.n_layers)

    def last_layer(self, pooled: Tensor) -> Tensor:
        """Run bridge and tail: pooled [batch, d_m] -> h~_L [batch, N_L, d_L]."""
        return self.tail(self.bridge(pooled))

    def logits(self, last: Tensor) -> Tensor:
        """Apply the teacher's head to a last layer [batch, N_L, d_L] -> [batch, classes]."""
        return self.head(self.old.pool(last))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] from new-modality windows [batch, channels, samples]."""
        return self.logits(self.last_layer(self.pooled(x)))

    def save(self, folder: Path | str) -> None:
        """Write the parameters as ``bridge.safetensors``, positions as ``bridge.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: p.detach().cpu().contiguous() for k, p in self.bridge.named_parameters()}
        save_file(weights, folder / "bridge.safetensors")
        about = {"m": self.m, "l": self.l, "n_parameters": self.bridge.n_parameters}
        about |= {"reshaped": self.bridge.reshaped}
        (folder / "bridge.json").write_text(json.dumps(about, indent=2) + "\n")

    @classmethod
    def load(
        cls, folder: Path | str, new: Backbone, old: Backbone, head: nn.Linear
    ) -> BridgedModel:
        """Put a saved bridge between two backbones.

        Raises
        ------
        FileNotFoundError
            No bridge is saved in this folder.
        ValueError
            The file is no bridge, is cut short, or fits other backbones than these.
        """
        path, about = Path(folder) / "bridge.safetensors", Path(folder) / "bridge.json"
        if not (path.is_file() and about.is_file()):
            raise FileNotFoundError(f"{path}: expected a bridge and its {about.name}, found none")
        try:
            place, weights = json.loads(about.read_text()), load_file(path)
            (rank, d_m), (d_l, n_p) = weights["A"].shape, weights["prototypes"].shape
            n_l, m, l = len(weights["B"]) // n_p, place["m"], place["l"]
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: expected a bridge (A, B, prototypes; m and l beside it), "
                f"found a foreign or truncated file ({error})"
            ) from None
        expected = (new.token_shape(m + 1)[1], *old.token_shape(l))
        if (d_m, n_l, d_l) != expected:
            raise ValueError(
                f"{path}: expected (d_m, N_l, d_l) = {expected} for these backbones, "
                f"found {(d_m, n_l, d_l)}"
            )
        bridge = PrototypeBridge(d_m, d_l, n_l, rank, n_p, place["reshaped"])
        bridge.load_state_dict(weights)
        return cls(new, old, bridge, head, m, l)
