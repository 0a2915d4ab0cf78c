"""Two-stage selection of the bridge's positions (section 3.3): m by probing, then l by CKA."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, islice

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from biox.backbones.base import Backbone
from biox.cka import StreamingCKA, linear_cka
from biox.probe import probe_scores


@dataclass(frozen=True)
class Selection:
    """Scores of every layer and the chosen pair.

    Attributes
    ----------
    m : int
        New layer (0-based) whose output feeds the bridge.
    l : int
        Old layer (0-based) whose input the bridge writes.
    probe : tuple of float
        Macro-F1 on pseudo-labels, for the output of every new layer (eq. 4).
    cka, cka_biased : tuple of float
        Debiased and biased CKA between the output of new layer m and the input of every old
        layer (eq. 5). NaN where it is not defined, or was not computed.
    """

    m: int
    l: int
    probe: tuple[float, ...]
    cka: tuple[float, ...]
    cka_biased: tuple[float, ...]

    def to_json(self) -> dict:
        """Plain numbers and lists."""
        return asdict(self)


def select_positions(
    new_outputs: Sequence[np.ndarray],
    old_inputs: Sequence[np.ndarray],
    pseudo_labels: np.ndarray,
    subjects: np.ndarray | None = None,
    cka: str = "debiased",
    n_folds: int = 5,
    m: int | None = None,
    l: int | None = None,
    flattened: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None = None,
    streamed: np.ndarray | None = None,
    n_jobs: int = 1,
) -> Selection:
    """Choose m and l from pooled activations of the paired windows; no label is read.

    Parameters
    ----------
    new_outputs : sequence of M arrays, [n, d_m]
        Pooled output of every new layer.
    old_inputs : sequence of L arrays, [n, d_l]
        Pooled input of every old layer.
    pseudo_labels : ndarray of int, [n]
        The teacher's decisions on its own modality.
    subjects : ndarray of str, [n], optional
        Keeps probe folds apart by subject; absent: folds as published (see `probe_score`).
    cka : {"debiased", "biased"}
        Which estimate decides; both are returned.
    n_folds : int
        Folds of the probe.
    m, l : int, optional
        Positions that are given: they are taken, and the scores are computed all the same.
    flattened : (sequence of M arrays, sequence of L arrays), optional
        Output of every new and input of every old layer with all tokens flattened, on the same or
        on fewer windows (`biox.activations.flattened_states`): CKA compares these, as the paper's
        text says. Absent: CKA compares pooled features, as the released code does.
    streamed : ndarray, [M, L], optional
        In place of `flattened`, where all states do not fit in memory: debiased CKA of every pair
        of layers, from `flattened_cka`. There is no biased value then.
    n_jobs : int
        Processes that share the probes (`biox.probe.probe_scores`); no number depends on it.

    Returns
    -------
    Selection

    Notes
    -----
    Ties go to the earlier layer. An undefined CKA (NaN) never wins.
    """
    if cka not in ("debiased", "biased"):
        raise ValueError(f"select_positions: expected cka 'debiased' or 'biased', found {cka!r}")
    if streamed is not None and (cka == "biased" or flattened is not None):
        raise ValueError(
            "select_positions: expected cka 'debiased' and no flattened states beside streamed "
            f"values, found cka {cka!r}" + (" and flattened states" if flattened else "")
        )
    if streamed is not None and streamed.shape != (len(new_outputs), len(old_inputs)):
        raise ValueError(
            f"select_positions: expected streamed values for every pair of layers, "
            f"{(len(new_outputs), len(old_inputs))}, found {streamed.shape}"
        )
    for name, given, layers in (("m", m, new_outputs), ("l", l, old_inputs)):
        if given is not None and not 0 <= given < len(layers):
            raise ValueError(
                f"select_positions: expected {name} out of 0..{len(layers) - 1}, found {given}"
            )
    probe = probe_scores(new_outputs, pseudo_labels, subjects, n_folds, n_jobs)
    m = int(np.argmax(probe)) if m is None else m
    if streamed is None:
        outputs, inputs = flattened or (new_outputs, old_inputs)
        debiased = [linear_cka(outputs[m], features, debiased=True) for features in inputs]
        biased = [linear_cka(outputs[m], features) for features in inputs]
    else:
        debiased, biased = streamed[m].tolist(), [float("nan")] * len(old_inputs)
    deciding = np.array(debiased if cka == "debiased" else biased)
    if np.isnan(deciding).all():
        raise ValueError(
            f"select_positions: expected a defined CKA for some old layer, found none: "
            f"{len(pseudo_labels)} windows are too few for features this wide"
        )
    l = int(np.nanargmax(deciding)) if l is None else l
    return Selection(m, l, tuple(probe), tuple(debiased), tuple(biased))


@torch.no_grad()
def flattened_cka(
    new: Backbone, old: Backbone, x_new: Tensor, x_old: Tensor, batch: int = 64, seed: int = 0
) -> np.ndarray:
    """Debiased CKA of layers with all tokens flattened, in one pass that keeps no hidden state.

    Memory does not grow with the number of windows: it holds a batch of one layer at a time, and
    a batch x batch matrix a layer (`biox.cka.StreamingCKA`, which says how exact this is).

    Parameters
    ----------
    new, old : Backbone
    x_new, x_old : Tensor, [n, channels, samples]
        Paired windows.
    batch : int
        Windows at most in a batch. The more, the less noise.
    seed : int
        Decides which windows share a batch.

    Returns
    -------
    ndarray, [M, L]
        Output of every new layer with the input of every old layer.

    Raises
    ------
    ValueError
        Different numbers of windows, or fewer than 4 in a batch.
    """
    if len(x_new) != len(x_old):
        raise ValueError(
            f"flattened_cka: expected paired windows, found {len(x_new)} new and {len(x_old)} old"
        )
    order = np.random.default_rng(seed).permutation(len(x_new))
    parts = np.array_split(order, max(1, -(-len(order) // batch)))  # no batch much smaller
    stream = StreamingCKA()
    for rows in tqdm(parts, desc="CKA of flattened layers", disable=None):
        outputs = islice(_flattened_states(new, x_new[rows]), 1, None)
        inputs = islice(_flattened_states(old, x_old[rows]), old.n_layers)
        stream.update(outputs, inputs)
    return stream.value()


def _flattened_states(backbone: Backbone, x: Tensor) -> Iterator[np.ndarray]:
    """Give the stem's output and each layer's [batch, tokens * features], one after another."""
    backbone.eval()
    stem, layers = backbone.stem(x.to(next(backbone.parameters()).device)), range(backbone.n_layers)
    for h in accumulate(layers, lambda h, i: backbone.layer(i, h), initial=stem):
        yield h.flatten(1).cpu().numpy()
