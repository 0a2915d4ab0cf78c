"""Where paper and released code disagree: what each difference does to bridges and positions.

`notebooks/deviations.ipynb` calls this; nothing else does. What they change before there is a
bridge (windows, teachers, sizes) is measured in `biox.deviations_data`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from biox.backbones import LaBraM, PaPaGei
from biox.case import Case
from biox.cka import linear_cka
from biox.data.windows import Windows
from biox.experiment import PATHS, flattened_pair
from biox.losses import EQUATION_7
from biox.positions import select_positions
from biox.training import fit_bridge, predict

BRIDGE_VARIANTS = {
    "default": (None, {}),
    "layout: released": (1, {"layout": "released"}),
    "prototypes: random": (3, {"prototypes": "random"}),
    "loss: infonce": (9, {"loss": "infonce"}),
    "loss: mae": (9, {"loss": "mae"}),
    "align: input": (9, {"align": "input"}),
    "align: input, loss: mae": (9, {"align": "input", "loss": "mae"}),
}
"""By name: number of the deviation, and what it changes in section `bridge` of params.yaml."""


def _scored(case: Case, seeds: Sequence[int], **changes: object) -> list[dict]:
    """Train a bridge a seed with changed settings; one row each."""
    return [
        {
            "direction": case.name,
            "seed": result.seed,
            "balanced accuracy (%)": case.score(result.probabilities),
            "collapsed": len(set(result.probabilities.argmax(axis=1))) == 1,
        }
        for result in case.trained(seeds, **changes)
    ]


def bridge_variants(cases: Sequence[Case], seeds: Sequence[int]) -> pd.DataFrame:
    """Train bridges with one setting changed at a time: one row a direction, variant and seed."""
    rows = []
    for case in cases:
        for variant, (number, changes) in BRIDGE_VARIANTS.items():
            if number == 1 and not isinstance(case.old, LaBraM):
                continue
            trained = _scored(case, seeds, **changes)
            rows += [row | {"variant": variant, "number": number} for row in trained]
    return pd.DataFrame(rows)


def position_variants(case: Case, seeds: Sequence[int], scored: pd.DataFrame) -> pd.DataFrame:
    """What each variant of the selection chooses, and how bridges do there.

    Parameters
    ----------
    scored : DataFrame
        From `bridge_variants`; its default rows are not trained again.

    Returns
    -------
    DataFrame
        One row a variant and seed.
    """
    pair = case.cached["pair"]
    pooled, flattened = (pair.new, pair.old), flattened_pair(case.settings, case.name)
    published = select_positions(*pooled, pair.pseudo_labels)
    places = {
        "default": (None, (case.m, case.l)),
        "cka: biased": (4, (case.m, _output_position(*pooled, case.m, debiased=False))),
        "features: flattened": (4, (case.m, _output_position(*flattened, case.m))),
        "features: flattened, cka: biased": (
            4,
            (case.m, _output_position(*flattened, case.m, debiased=False)),
        ),
        "probe: as_published": (6, (published.m, published.l)),
    }
    if isinstance(case.old, PaPaGei):
        l = _output_position(pair.new, channel_averages(case)[:-1], case.m)
        places["PaPaGei's channels averaged"] = (5, (case.m, l))
    base = scored[(scored["variant"] == "default") & (scored["direction"] == case.name)]
    known = {(case.m, case.l): base.to_dict("records")}
    rows = []
    for variant, (number, (m, l)) in places.items():
        if (m, l) not in known:
            known[m, l] = _scored(replace(case, m=m, l=l), seeds)
        place = {"variant": variant, "number": number, "m": m, "l": l}
        rows += [row | place for row in known[m, l]]
    return pd.DataFrame(rows)


def _output_position(
    outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray], m: int, debiased: bool = True
) -> int:
    return int(np.nanargmax([linear_cka(outputs[m], h, debiased) for h in inputs]))


@torch.no_grad()
def channel_averages(case: Case) -> list[np.ndarray]:
    """Hidden states of PaPaGei averaged over channels, which leaves time: [n, N_l] for every layer.

    What the released position selection reads; its training averages over time (deviation 5).
    """
    d = case.settings.direction(case.name)
    x = torch.from_numpy(Windows.load(PATHS.windows(d.dataset, "pair"), [d.old]).signals[d.old])
    parts = [[h.mean(dim=2) for h in case.old.hidden_states(part)] for part in x.split(32)]
    return [torch.cat(layer).numpy() for layer in zip(*parts, strict=True)]


def first_gradients(case: Case, steps: int = 2) -> pd.DataFrame:
    """Norm of the loss gradient in each parameter at the first steps (Adam, first windows)."""
    model, pairs = case.untrained(case.settings.bridge)
    optimizer = torch.optim.Adam(model.bridge.parameters(), lr=case.settings.bridge.lr)
    pooled, target = (h[: case.settings.bridge.batch] for h in vars(pairs["pair"]).values())
    rows = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        EQUATION_7(model, pooled, target).backward()
        optimizer.step()
        norms = {name: p.grad.norm().item() for name, p in model.bridge.named_parameters()}
        rows.append({"direction": case.name, "step": step} | norms)
    return pd.DataFrame(rows)


def half_precision(case: Case, n: int = 16) -> dict[str, float]:
    """How wrong gradients of a trained-for-one-epoch bridge are under 16-bit autocast.

    Returns
    -------
    dict
        By parameter: distance to the 32-bit gradient, relative to its norm (no loss scaling, as in
        the released code).
    """
    model, pairs = case.untrained(case.settings.bridge)
    fit_bridge(model, pairs["pair"], pairs["val"], case.settings.bridge.lr, epochs=1)
    pooled, target = (h[:n] for h in vars(pairs["pair"]).values())
    gradients = []
    for half in (False, True):
        model.bridge.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=half):
            loss = EQUATION_7(model, pooled, target)
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.bridge.named_parameters()})
    full, half = gradients
    return {name: float((half[name] - full[name]).norm() / full[name].norm()) for name in full}


def epochs_on_test(case: Case, seeds: Sequence[int], every: int = 5) -> pd.DataFrame:
    """Score every few epochs on test: what picking the best of them there would pretend.

    Columns: ``direction seed epoch score kept`` (kept: the epoch chosen on val).
    """
    rows, settings = [], case.settings.bridge
    for seed in seeds:
        model, pairs = case.untrained(settings, seed)
        curve: dict[int, float] = {}

        def watch(epoch, model, curve=curve, test=pairs["test"]):
            curve[epoch] = case.score(predict(model, test.pooled))

        fit = fit_bridge(
            model, pairs["pair"], pairs["val"], settings.lr, settings.epochs, settings.batch, seed,
            watch=watch,
        )  # fmt: skip
        rows += [
            {"direction": case.name, "seed": seed, "epoch": epoch, "score": score, "kept": kept}
            for epoch, score in curve.items()
            for kept in [epoch == fit.best_epoch]
            if kept or epoch % every == 0
        ]
    return pd.DataFrame(rows)


def independent_cka(
    sizes: Sequence[int] = (200, 1000, 5000), widths: tuple[int, int] = (768, 200), seed: int = 0
) -> pd.DataFrame:
    """Both CKA estimates of features that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in sizes:
        x, y = (rng.normal(size=(n, width)) for width in widths)
        rows.append({"windows": n, "biased": linear_cka(x, y), "debiased": linear_cka(x, y, True)})
    return pd.DataFrame(rows).set_index("windows")
