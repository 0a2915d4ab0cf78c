"""The prototype bridge and the bridged model (BioX-Bridge, section 3.2, equation 6)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from biox.backbones.base import Backbone

_RANDOM = Lock()  # torch's global generator is shared by all threads


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let a seed decide what is drawn within, whatever was drawn before and in other threads."""
    with _RANDOM, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


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
    affine : bool
        True: the input is standardised and constants are added, ``h~_l = Reshape(z A B + b) P + t``
        with N_l N_p + d_l more parameters. Not in the paper.

    Attributes
    ----------
    A : Parameter, [r, d_m]
        Kaiming-uniform with a = sqrt(5).
    B : Parameter, [N_p * N_l, r]
        Zeros, so that training starts from the same output for every window.
    prototypes : Parameter, [d_l, N_p]
        P transposed. Standard normal; `initial` can draw them from tokens of the old model.
    b, t : Parameter, [N_p * N_l] and [d_l]
        Zeros. Of an affine bridge only, like the two below.
    mean, sd : buffer, [d_m]
        ``z = (Pool(h_m) - mean) / sd``. A and b could absorb both.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n_tokens: int,
        rank: int,
        n_prototypes: int,
        reshaped: bool = False,
        affine: bool = False,
    ):
        super().__init__()
        assert min(in_features, out_features, n_tokens, rank + 1, n_prototypes) > 0
        self.n_tokens, self.n_prototypes, self.reshaped = n_tokens, n_prototypes, reshaped
        self.affine = affine
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(n_prototypes * n_tokens, rank))
        self.prototypes = nn.Parameter(torch.randn(out_features, n_prototypes))
        if rank > 0:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        if affine:
            self.b = nn.Parameter(torch.zeros(n_prototypes * n_tokens))
            self.t = nn.Parameter(torch.zeros(out_features))
            self.register_buffer("mean", torch.zeros(in_features))
            self.register_buffer("sd", torch.ones(in_features))

    @classmethod
    def initial(
        cls, *sizes: int, seed: int, tokens: Tensor | None = None, **options: bool
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
        **options : bool
            `reshaped` and `affine`.
        """
        with seeded(seed):
            bridge = cls(*sizes, **options)
            if tokens is not None:
                n, n_p = len(tokens), bridge.n_prototypes
                rows = torch.randperm(n)[:n_p] if n >= n_p else torch.randint(n, (n_p,))
                bridge.prototypes.data.copy_(tokens[rows].T)
        return bridge

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled features [batch, d_m] to tokens [batch, N_l, d_l]."""
        z = (pooled - self.mean) / self.sd if self.affine else pooled
        weights = z @ self.A.T @ self.B.T  # [batch, N_p * N_l]
        weights = weights + self.b if self.affine else weights
        weights = weights.view(len(pooled), self.n_prototypes, self.n_tokens)
        tokens = weights.transpose(1, 2) @ self.prototypes.T  # [batch, N_l, d_l]
        tokens = tokens + self.t if self.affine else tokens
        return tokens.transpose(1, 2).reshape(tokens.shape) if self.reshaped else tokens

    @property
    def n_parameters(self) -> int:
        """Trainable parameters: d_m r + r N_l N_p + N_p d_l; affine, N_l N_p + d_l more."""
        return sum(p.numel() for p in self.parameters())

    def standardise(self, pooled: Tensor) -> None:
        """Set the input's mean and standard deviation to those of pooled features [n, d_m]."""
        x = pooled.double()
        self.mean.copy_(x.mean(0))
        self.sd.copy_(x.std(0, correction=0).clamp_min(1e-6))

    @torch.no_grad()
    def regress(self, pooled: Tensor, target: Tensor | np.ndarray, ridge: float) -> None:
        """Set an affine bridge to the reduced-rank ridge regression of the old model's tokens.

        With Z the standardised features, Y the centred target and G = Z'Z + ridge n I, the best
        map of rank r is ``G^-1/2 U_r U_r' G^-1/2 Z'Y``, where U_r are the first r left singular
        vectors of G^-1/2 Z'Y (Mukherjee and Zhu 2011). Then the N_p prototypes are the main
        directions of its tokens, of the mean ones too; with N_p >= d_l nothing is lost by them.

        Parameters
        ----------
        pooled : Tensor, [n, d_m]
        target : Tensor or ndarray, [n, N_l, d_l]
            Input of the old model's layer l. At most d_m of its columns are copied at a time.
        ridge : float
            Penalty of a standardised feature's squared weights, in windows per window.
        """
        assert self.affine and not self.reshaped
        self.standardise(pooled)
        (n, d_m), (rank, n_p), d_l = pooled.shape, (len(self.A), self.n_prototypes), len(self.t)
        z = (pooled.double() - self.mean) / self.sd
        values, vectors = torch.linalg.eigh(z.T @ z + ridge * n * torch.eye(d_m).to(z))
        root = vectors / values.clamp_min(1e-12).sqrt() @ vectors.T  # G^-1/2
        flat = target.numpy() if isinstance(target, Tensor) else target
        flat = flat.reshape(n, -1)  # [n, N_l * d_l]

        def columns() -> Iterator[Tensor]:
            for a in range(0, flat.shape[1], d_m):
                yield torch.from_numpy(np.array(flat[:, a : a + d_m], dtype=np.float64))

        gram, mean = torch.zeros_like(root), []
        for y in columns():
            m = root @ (z.T @ y)  # Z is centred, so the target's mean has no effect
            gram += m @ m.T
            mean.append(y.mean(0))
        u = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank]
        project = root @ u * n**0.5
        scores = z @ project  # of variance 1 at most
        cross = torch.cat([scores.T @ y / n for y in columns()], 1)
        cross = cross.view(len(cross), self.n_tokens, d_l)
        mean = torch.cat(mean).view(self.n_tokens, d_l)
        t = mean.mean(0)
        both = torch.cat([cross.flatten(0, 1), mean - t])  # windows weigh as in the regression
        p = torch.linalg.eigh(both.T @ both).eigenvectors.flip(1)[:, :n_p]
        for parameter in (self.A, self.B, self.b, self.prototypes):
            parameter.zero_()  # what a rank above d_m or prototypes beyond d_l would leave
        self.A[: u.shape[1]] = project.T.to(self.A)
        self.prototypes[:, : p.shape[1]] = p.to(self.A)
        b = (torch.cat([cross, (mean - t)[None]]) @ p).transpose(1, 2)  # [r + 1, N_p, N_l]
        rows = b.shape[1] * b.shape[2]
        self.B[:rows, : u.shape[1]] = b[:-1].flatten(1).T.to(self.A)
        self.b[:rows], self.t[:] = b[-1].flatten().to(self.A), t.to(self.A)


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
            expected = f"m in 0..{new.n_layers - 1}, l in 0..{old.n_layers - 1}"
            raise ValueError(f"BridgedModel: expected {expected}, found m = {m} and l = {l}")
        self.new = new.eval().requires_grad_(False)
        self.old = old.eval().requires_grad_(False)
        self.head = head.requires_grad_(False)
        self.bridge, self.m, self.l = bridge, m, l
        self.recipe: dict | None = None  # of `load`, where the folder has one

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
        weights = {k: p.detach().cpu().contiguous() for k, p in self.bridge.state_dict().items()}
        save_file(weights, folder / "bridge.safetensors")
        about = {"m": self.m, "l": self.l, "n_parameters": self.bridge.n_parameters}
        about |= {"reshaped": self.bridge.reshaped, "affine": self.bridge.affine}
        (folder / "bridge.json").write_text(json.dumps(about, indent=2) + "\n")

    @classmethod
    def load(
        cls,
        folder: Path | str,
        new: Backbone | None = None,
        old: Backbone | None = None,
        head: nn.Linear | None = None,
    ) -> BridgedModel:
        """Put a saved bridge between two backbones.

        Parameters
        ----------
        folder : path
            Of `save`; or of `biox.predict.pack`, which needs nothing else.
        new, old, head : optional
            All three or none: those that the folder names.

        Raises
        ------
        FileNotFoundError
            No bridge is saved in this folder, or a file that it names is absent.
        ValueError
            The file is no bridge, is cut short, or fits other backbones than these; or the folder
            names another file of weights than the one that is there.
        """
        path, about = Path(folder) / "bridge.safetensors", Path(folder) / "bridge.json"
        recipe = None
        if new is None or old is None or head is None:
            recipe, new, old, head = _packed(Path(folder))
        if not (path.is_file() and about.is_file()):
            raise FileNotFoundError(f"{path}: expected a bridge and its {about.name}, found none")
        try:
            positions, weights = json.loads(about.read_text()), load_file(path)
            (rank, d_m), (d_l, n_p) = weights["A"].shape, weights["prototypes"].shape
            n_l, m, l = len(weights["B"]) // n_p, positions["m"], positions["l"]
        except (SafetensorError, KeyError, ValueError) as error:
            expected = "a bridge (A, B, prototypes; m and l beside it)"
            found = f"a foreign or truncated file ({error})"
            raise ValueError(f"{path}: expected {expected}, found {found}") from None
        found, wanted = (d_m, n_l, d_l), (new.token_shape(m + 1)[1], *old.token_shape(l))
        if found != wanted:
            expected = f"(d_m, N_l, d_l) = {wanted} for these backbones"
            raise ValueError(f"{path}: expected {expected}, found {found}")
        affine = positions.get("affine", False)
        bridge = PrototypeBridge(d_m, d_l, n_l, rank, n_p, positions["reshaped"], affine)
        bridge.load_state_dict(weights)
        model = cls(new, old, bridge, head, m, l)
        model.recipe = recipe
        return model


# --- a folder that holds everything ---------------------------------------------------------------


def _packed(folder: Path) -> tuple[dict, Backbone, Backbone, nn.Linear]:
    """Read ``recipe.json`` of `biox.predict.pack`; build both models and the head that it names.

    No other file passes for them.
    """
    from biox.backbones import build
    from biox.config import digest
    from biox.teacher import load_head

    path = folder / "recipe.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the recipe of a packed bridge, found none")
    try:
        recipe = json.loads(path.read_text())
        models, _, _ = recipe["models"], recipe["seconds"], recipe["files"].items()
        for field in ("name", "size", "widen", "channels", "checkpoint", "digest"):
            models["new"][field], models["old"][field]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the recipe of a packed bridge, found a foreign file ({error!r})"
        ) from None

    def own(path: Path, sha: str) -> Path:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a file of {folder}, found none")
        if (found := digest(path)) != sha:
            expected = f"the file that the bridge in {folder} was trained with (SHA-256 {sha}...)"
            raise ValueError(f"{path}: expected {expected}, found another one ({found}...)")
        return path

    for name, sha in recipe["files"].items():
        own(folder / name, sha)
    built = []
    for side in ("new", "old"):
        about = recipe["models"][side]
        copy = folder / f"{side}.safetensors"
        path = own(copy if copy.is_file() else Path(about["checkpoint"] or copy), about["digest"])
        kind, windows = (about["name"], about["size"]), (about["channels"], recipe["seconds"])
        built.append(build(*kind, path, *windows, about["widen"]))
    return recipe, *built, load_head(folder)
