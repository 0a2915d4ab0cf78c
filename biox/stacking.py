"""Several bridges that train together: one computation, the same results as one after another.

The tail is frozen and the same for all of them, so what K bridges write passes it as one batch.
Each bridge has its own loss, and the gradient of their sum is for each that of its own; Adam works
by the element. Bridges of lower rank or with fewer prototypes are filled up with zeros, and these
stay zeros: A is multiplied by B's zeros and B by A's, so that neither ever gets a gradient.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from biox.agreement import agreement, best_epoch
from biox.bridge import BridgedModel, PrototypeBridge
from biox.compute import AS_IT_COMES, Compute
from biox.losses import EQUATION_7, Objective
from biox.pairs import Pairs, on_device

EVALUATED = 64
"""Windows in a batch where nothing is learnt, as in `biox.training.mean_loss`."""


class BridgeStack(nn.Module):
    """The parameters of K bridges between the same layers, of any ranks and prototype counts.

    Parameters
    ----------
    bridges : sequence of PrototypeBridge
        Their values are copied; `write` copies them back.

    Attributes
    ----------
    A : Parameter, [K, r, d_m]
    B : Parameter, [K, N_p * N_l, r]
    prototypes : Parameter, [K, d_l, N_p]
        With the highest r and N_p among them; lower ones are followed by zeros.

    Raises
    ------
    ValueError
        The bridges differ in more than rank and number of prototypes.
    """

    def __init__(self, bridges: Sequence[PrototypeBridge]):
        super().__init__()
        places = {(b.A.shape[1], b.n_tokens, len(b.prototypes), b.reshaped) for b in bridges}
        if len(places) != 1:
            raise ValueError(
                f"BridgeStack: expected bridges that share d_m, N_l, d_l and layout, "
                f"found {sorted(places)}"
            )
        self.n_tokens, self.reshaped = bridges[0].n_tokens, bridges[0].reshaped
        for name in ("A", "B", "prototypes"):
            values = [getattr(bridge, name).detach() for bridge in bridges]
            rows, columns = (max(v.shape[i] for v in values) for i in (0, 1))
            whole = values[0].new_zeros(len(values), rows, columns)
            for own, value in zip(whole, values, strict=True):
                own[: value.shape[0], : value.shape[1]] = value
            self.register_parameter(name, nn.Parameter(whole))

    def forward(self, pooled: Tensor) -> Tensor:
        """Map a batch for each bridge [K, batch, d_m] to tokens [K, batch, N_l, d_l]."""
        A, B, prototypes = self.A, self.B, self.prototypes
        (k, batch, _), n_tokens, low = pooled.shape, self.n_tokens, pooled @ A.mT
        rank, (width, n_prototypes) = A.shape[1], prototypes.shape[1:]
        if rank * width < batch * n_prototypes:  # of two orders, the one with less in between
            maps = prototypes @ B.view(k, n_prototypes, n_tokens * rank)  # [K, d_l, N_l * r]
            tokens = (low @ maps.view(k, width * n_tokens, rank).mT).view(k, batch, width, -1).mT
        else:
            weights = (low @ B.mT).view(k, batch, n_prototypes, n_tokens).mT
            tokens = (weights.flatten(1, 2) @ prototypes.mT).view(k, batch, n_tokens, width)
        return tokens.mT.reshape(tokens.shape) if self.reshaped else tokens

    @torch.no_grad()
    def write(self, bridges: Sequence[PrototypeBridge]) -> None:
        """Copy the values into bridges of the sizes that the stack was made from."""
        for name, whole in self.named_parameters():
            for bridge, own in zip(bridges, whole, strict=True):
                value = getattr(bridge, name)
                value.copy_(own[: value.shape[0], : value.shape[1]])


def _nothing(tokens: Tensor) -> Tensor:
    """Stand in for the tail where there is none to run."""
    return tokens


class StackedTraining:
    """K bridges in training between the same frozen models; call `epoch` again and again.

    Parameters
    ----------
    models : sequence of BridgedModel
        One a bridge; they share the old model and the positions. Only `write` changes them.
    pair, val : Pairs
    lr : float
        Learning rate of Adam.
    batch : int
        Windows a step, of each bridge.
    seeds : sequence of int
        One a bridge: decides the order of its windows.
    objective : Objective
    compute : Compute

    Attributes
    ----------
    bridges : BridgeStack
        The bridges now.
    best : dict
        Values of the stack's parameters, each bridge's from its own best epoch.
    best_epochs : list of K int
        Epochs kept, see `biox.agreement`; 0 before the first.
    train_losses, val_losses, val_agreements : list of lists of K float
        One list an epoch; see `biox.training.Fit`.

    Raises
    ------
    ValueError
        The models differ in more than their bridges.
    """

    def __init__(
        self,
        models: Sequence[BridgedModel],
        pair: Pairs,
        val: Pairs,
        lr: float,
        batch: int,
        seeds: Sequence[int],
        objective: Objective = EQUATION_7,
        compute: Compute = AS_IT_COMES,
    ):
        places = {(id(model.old), model.m, model.l) for model in models}
        if len(places) != 1:
            raise ValueError(
                f"bridges: expected models that share the old model, m and l, "
                f"found {len(places)} places"
            )
        self.models = models
        self.pair, self.val, self.batch, self.seeds = pair, val, batch, tuple(seeds)
        self.objective, self.compute, self.l = objective, compute, models[0].l
        self.bridges = BridgeStack([model.bridge for model in models])
        self.device = self.bridges.A.device
        self.optimizer = torch.optim.Adam(self.bridges.parameters(), lr=lr, fused=True)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        tail = compute.prepared(models[0].tail)
        # The loss compares last layers, or what the bridge itself writes; answers need the last.
        self.tail, self.rest = (tail, _nothing) if objective.align == "last" else (_nothing, tail)
        self.best = {name: p.detach().clone() for name, p in self.bridges.named_parameters()}
        self.best_epochs = [0] * len(models)
        self.train_losses: list[list[float]] = []
        self.val_losses: list[list[float]] = []
        self.val_agreements: list[list[float]] = []

    def found(self) -> Iterator[tuple]:
        """Each bridge's curves and its best epoch, as `biox.training.Fit` has them."""
        curves = (self.train_losses, self.val_losses, self.val_agreements)
        by_bridge = (zip(*by_epoch, strict=True) for by_epoch in curves)
        return zip(*by_bridge, self.best_epochs, strict=True)

    def measure(self) -> None:
        """Write down where things stand before the first step."""
        self.train_losses.append(self.mean_losses(self.pair))
        self.examine()

    def epoch(self) -> None:
        """Take every bridge once through its windows, measure it on val, and keep the best.

        Raises
        ------
        FloatingPointError
            A loss stops being finite.
        """
        n, now = len(self.pair.pooled), len(self.train_losses)
        where = f"in epoch {now} at learning rate {self.optimizer.defaults['lr']}"
        total = torch.zeros(len(self.seeds), dtype=torch.float64, device=self.device)
        try:
            for rows in self.orders().split(self.batch, dim=1):
                total += self.step(rows).double() * rows.shape[1]
            self.train_losses.append((total / n).tolist())
            self.examine()
        except FloatingPointError as error:  # of a layer of the tail
            raise FloatingPointError(f"bridge: {error}, {where}") from error
        for on_pair, on_val in zip(self.train_losses[-1], self.val_losses[-1], strict=True):
            if not (on_pair < float("inf") and on_val < float("inf")):
                raise FloatingPointError(
                    f"bridge: expected a finite loss, found {on_pair} on pair and {on_val} on val "
                    f"{where}"
                )
        self._keep_best()

    def orders(self) -> Tensor:
        """Draw each bridge's order of the windows for an epoch [K, n]."""
        n = len(self.pair.pooled)
        return torch.stack([torch.randperm(n, generator=g) for g in self.generators])

    def step(self, rows: Tensor) -> Tensor:
        """One step of Adam: bridges forward, tail forward and backward, bridges backward.

        Parameters
        ----------
        rows : Tensor, [K, batch]
            Each bridge's windows of `pair`.

        Returns
        -------
        Tensor, [K]
            Losses before the step, without a graph.
        """
        pooled = on_device(self.pair.pooled[rows], self.device)
        target = on_device(self.pair.target[rows.flatten()], self.device)
        losses = self.objective.compare(self._bridged(pooled), target.unflatten(0, rows.shape))
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.optimizer.step()
        return losses.detach()

    @cached_property
    @torch.no_grad()
    def taught(self) -> Tensor:
        """What the teacher answers on val [n], from its last layer."""
        batches = self.val.target.split(EVALUATED)
        said = [self._answers(on_device(y, self.device)[None])[0] for y in batches]
        return torch.cat(said).argmax(dim=1)

    @torch.no_grad()
    def examine(self) -> None:
        """Write down each bridge's mean loss on val, and its agreement with the teacher there."""
        total, answers = 0.0, []
        for losses, bridged in self._evaluated(self.val):
            total = total + losses
            answers.append(self._answers(bridged).cpu())
        self.val_losses.append((total / len(self.val.pooled)).tolist())
        self.val_agreements.append(
            [agreement(own, self.taught.cpu()) for own in torch.cat(answers, dim=1)]
        )

    def mean_losses(self, pairs: Pairs) -> list[float]:
        """Each bridge's mean loss over all pairs."""
        return (sum(losses for losses, _ in self._evaluated(pairs)) / len(pairs.pooled)).tolist()

    @torch.no_grad()
    def _evaluated(self, pairs: Pairs) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch of windows, the sums of losses [K] and what they compare; none is kept."""
        batches = zip(pairs.pooled.split(EVALUATED), pairs.target.split(EVALUATED), strict=True)
        for pooled, target in batches:
            pooled, target = on_device(pooled, self.device), on_device(target, self.device)
            bridged = self._bridged(pooled.expand(len(self.seeds), -1, -1))
            yield self.objective.compare(bridged, target[None]).double() * len(pooled), bridged

    def write(self) -> None:
        """Put the bridges as they are now into their models."""
        self.bridges.write([model.bridge for model in self.models])

    @torch.no_grad()
    def restore_best(self) -> None:
        """Give every bridge the values of its best epoch."""
        for name, whole in self.bridges.named_parameters():
            whole.copy_(self.best[name])

    def _bridged(self, pooled: Tensor) -> Tensor:
        """What the loss compares: of batches [K, batch, d_m], representations [K, batch, N, d]."""
        tokens = self.bridges(pooled)
        with self.compute.precision(self.device.type):
            bridged = self.tail(tokens.flatten(0, 1))
        return bridged.float().unflatten(0, tokens.shape[:2])

    def _answers(self, bridged: Tensor) -> Tensor:
        """Probabilities [K, batch, classes] that follow from what the loss compares."""
        model = self.models[0]
        last = self.rest(bridged.flatten(0, 1))
        return model.head(model.old.pool(last)).softmax(dim=1).unflatten(0, bridged.shape[:2])

    def _keep_best(self) -> None:
        now = len(self.val_losses) - 1
        curves = (
            zip(*by_epoch, strict=True) for by_epoch in (self.val_agreements, self.val_losses)
        )
        for k, curve in enumerate(zip(*curves, strict=True)):
            if best_epoch(*curve) == now:
                self.best_epochs[k] = now
                for name, whole in self.bridges.named_parameters():
                    self.best[name][k] = whole.detach()[k]
