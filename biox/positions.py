"""Two-stage selection of the bridge's positions (section 3.3): m by probing, then l by CKA."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from biox.cka import linear_cka
from biox.probe import probe_score


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
        layer (eq. 5).
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

    Returns
    -------
    Selection

    Notes
    -----
    Ties go to the earlier layer. An undefined CKA (NaN) never wins.
    """
    if cka not in ("debiased", "biased"):
        raise ValueError(f"select_positions: expected cka 'debiased' or 'biased', found {cka!r}")
    for name, given, layers in (("m", m, new_outputs), ("l", l, old_inputs)):
        if given is not None and not 0 <= given < len(layers):
            raise ValueError(
                f"select_positions: expected {name} out of 0..{len(layers) - 1}, found {given}"
            )
    probe = [
        probe_score(features, pseudo_labels, subjects, n_folds)
        for features in tqdm(new_outputs, desc="probing new layers", disable=None)
    ]
    m = int(np.argmax(probe)) if m is None else m
    outputs, inputs = flattened or (new_outputs, old_inputs)
    debiased = [linear_cka(outputs[m], features, debiased=True) for features in inputs]
    biased = [linear_cka(outputs[m], features) for features in inputs]
    deciding = np.array(debiased if cka == "debiased" else biased)
    if np.isnan(deciding).all():
        raise ValueError(
            f"select_positions: expected a defined CKA for some old layer, found none: "
            f"{len(pseudo_labels)} windows are too few for features this wide"
        )
    l = int(np.nanargmax(deciding)) if l is None else l
    return Selection(m, l, tuple(probe), tuple(debiased), tuple(biased))
