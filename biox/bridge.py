"""The prototype bridge and the bridged model (BioX-Bridge, section 3.2, equation 6)."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from biox.backbones.base import Backbone
from biox.files import read_json, write_json, written_whole


class PrototypeBridge(nn.Module):
    """Low-rank map from one pooled vector to a weight on every prototype for every token.

    ``h~_l = Reshape(Pool(h_m) A B) P`` with d_m r + r N_l N_p + N_p d_l parameters (eq. 6). The
    parameters keep the layout of the released code, so that its weights carry over.

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
        True: what the released code does where LaBraM is the old model. It takes the bridge's
        [d_l, N_l] of a window for [N_l, d_l] without transposing, so that a token mixes rows of
        other tokens and is no combination of prototypes (`layout: released` in params.yaml).

    Attributes
    ----------
    A : Parameter, [r, d_m]
        Kaiming-uniform with a = sqrt(5).
    B : Parameter, [N_p * N_l, r]
        Zeros, so that training starts from one and the same output for every window.
    prototypes : Parameter, [d_l, N_p]
        Standard normal; `set_prototypes` puts tokens of the old model there instead.
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
        sizes = dict(
            in_features=in_features,
            out_features=out_features,
            n_tokens=n_tokens,
            rank=rank,
            n_prototypes=n_prototypes,
        )
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"PrototypeBridge: expected {name} >= 1, found {size}")
        self.n_tokens, self.n_prototypes, self.reshaped = n_tokens, n_prototypes, reshaped
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(n_prototypes * n_tokens, rank))
        self.prototypes = nn.Parameter(torch.randn(out_features, n_prototypes))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled features [batch, d_m] to tokens [batch, N_l, d_l]."""
        weights = pooled @ self.A.T @ self.B.T  # [batch, N_p * N_l]
        weights = weights.view(len(pooled), self.n_prototypes, self.n_tokens)
        tokens = weights.transpose(1, 2) @ self.prototypes.T
        return tokens.transpose(1, 2).reshape(tokens.shape) if self.reshaped else tokens

    @torch.no_grad()
    def set_prototypes(self, tokens: Tensor, generator: torch.Generator | None = None) -> None:
        """Start from N_p tokens drawn from the old model's own layer-l tokens [any, d_l] (3.2).

        Drawn without replacement where there are enough.
        """
        if tokens.ndim != 2 or tokens.shape[1] != len(self.prototypes):
            raise ValueError(
                f"set_prototypes: expected tokens [any, {len(self.prototypes)}], "
                f"found shape {tuple(tokens.shape)}"
            )
        if len(tokens) >= self.n_prototypes:
            rows = torch.randperm(len(tokens), generator=generator)[: self.n_prototypes]
        else:
            rows = torch.randint(len(tokens), (self.n_prototypes,), generator=generator)
        self.prototypes.copy_(tokens[rows].T)

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
        self,
        new: Backbone,
        old: Backbone,
        bridge: PrototypeBridge,
        head: nn.Linear,
        m: int,
        l: int,
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

    def train(self, mode: bool = True) -> "BridgedModel":
        """Only the bridge ever changes mode; the frozen models stay in evaluation mode."""
        self.training = mode
        self.bridge.train(mode)
        return self

    def pooled(self, x: Tensor) -> Tensor:
        """Pool the new model's layer m: [batch, channels, samples] -> [batch, d_m]."""
        with torch.no_grad():
            return self.new.pool(self.new.run(self.new.stem(x), 0, self.m + 1))

    def last_layer(self, pooled: Tensor) -> Tensor:
        """Run bridge and tail: pooled [batch, d_m] -> h~_L [batch, N_L, d_L]."""
        return self.tail(self.bridge(pooled))

    def tail(self, tokens: Tensor) -> Tensor:
        """Run the old model from position l to its end: [batch, N_l, d_l] -> [batch, N_L, d_L]."""
        return self.old.run(tokens, self.l, self.old.n_layers)

    def classify(self, pooled: Tensor) -> Tensor:
        """Logits [batch, classes] from pooled new-model features [batch, d_m]."""
        return self.head(self.old.pool(self.last_layer(pooled)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] from new-modality windows [batch, channels, samples]."""
        return self.classify(self.pooled(x))

    def save(self, folder: Path | str) -> None:
        """Write the bridge as ``bridge.safetensors`` and its place and sizes as ``bridge.json``."""
        folder = Path(folder)
        weights = {
            name: p.detach().cpu().contiguous() for name, p in self.bridge.named_parameters()
        }
        with written_whole(folder / "bridge.safetensors") as part:
            save_file(weights, part)
        place = {"m": self.m, "l": self.l, "n_parameters": self.bridge.n_parameters}
        place |= {"reshaped": self.bridge.reshaped}
        write_json(folder / "bridge.json", place)

    @classmethod
    def load(
        cls, folder: Path | str, new: Backbone, old: Backbone, head: nn.Linear
    ) -> "BridgedModel":
        """Put a saved bridge between two backbones.

        Raises
        ------
        FileNotFoundError
            No bridge is saved in this folder.
        ValueError
            The file is no bridge, is cut short, or fits other backbones than these.
        """
        path = Path(folder) / "bridge.safetensors"
        place = read_json(Path(folder) / "bridge.json")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected the weights of a bridge, found nothing")
        try:
            weights = load_file(path)
            (rank, d_m), (d_l, n_p) = weights["A"].shape, weights["prototypes"].shape
            n_l = len(weights["B"]) // n_p
            m, l, reshaped = place["m"], place["l"], place.get("reshaped", False)
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
        bridge = PrototypeBridge(d_m, d_l, n_l, rank, n_p, reshaped)
        bridge.load_state_dict(weights)
        return cls(new, old, bridge, head, m, l)
