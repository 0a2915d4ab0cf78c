"""Class-wise picture of bridged beside true representations of the old model."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

KINDS = ("true", "bridged")


def read(path: Path | str) -> pd.DataFrame:
    """Read representations (`biox.embeddings.representations`).

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        Not both kinds of representations are there, of the same windows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected representations of windows, found nothing")
    frame = pd.read_csv(path, dtype={"subject": str})
    counts = frame["which"].value_counts().to_dict()
    if set(counts) != set(KINDS) or len(set(counts.values())) != 1:
        raise ValueError(f"{path}: expected as many rows true as bridged, found {counts}")
    return frame


def projected(frame: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Put both kinds on the first two principal axes of the true representations.

    Returns
    -------
    DataFrame
        ``which subject class``, ``axis 1``, ``axis 2``.
    ndarray, [2]
        Share of the variance of the true representations on each axis.
    """
    features = frame.filter(regex=r"^h \d+$")
    pca = PCA(n_components=2, svd_solver="full")
    pca.fit(features[frame["which"] == "true"])
    axes = pd.DataFrame(pca.transform(features), columns=["axis 1", "axis 2"], index=frame.index)
    return frame[["which", "subject", "class"]].join(axes), pca.explained_variance_ratio_


def plot(points: pd.DataFrame, shares: Sequence[float], titles: dict[str, str]) -> Figure:
    """Draw one panel a kind on the same axes, coloured by class."""
    figure, axes = plt.subplots(1, len(KINDS), figsize=(8, 3.3), sharex=True, sharey=True)
    order = sorted(points["class"].unique())
    for axis, kind in zip(axes, KINDS, strict=True):
        own = points[points["which"] == kind]
        sns.scatterplot(
            own, x="axis 1", y="axis 2", hue="class", style="class", hue_order=order,
            style_order=order, palette="colorblind", s=18, ax=axis, legend=axis is axes[-1],
        )  # fmt: skip
        axis.set(
            title=titles[kind],
            xlabel=f"first principal axis ({shares[0]:.0%} of true variance)",
            ylabel=f"second ({shares[1]:.0%})",
        )
    axes[-1].legend(frameon=False, fontsize="small")
    return figure


def verdict(frame: pd.DataFrame) -> str:
    """Say how far classes are apart in all dimensions, and how alike bridged and true are."""
    parts = {kind: frame[frame["which"] == kind] for kind in KINDS}
    h = {kind: part.filter(regex=r"^h \d+$").to_numpy() for kind, part in parts.items()}
    apart = {kind: silhouette_score(h[kind], parts[kind]["class"]) for kind in KINDS}
    order = "less" if apart["bridged"] < apart["true"] else "**not less**"
    centred = {kind: x - x.mean(axis=0) for kind, x in h.items()}
    lengths = {kind: np.linalg.norm(x, axis=1) for kind, x in centred.items()}
    products = (centred["true"] * centred["bridged"]).sum(axis=1)
    alike = np.mean(products / np.prod(list(lengths.values()), axis=0))
    wider = lengths["bridged"].mean() / lengths["true"].mean()
    return (
        f"- Silhouette of the classes in all dimensions: {apart['true']:.2f} true, "
        f"{apart['bridged']:.2f} bridged: bridged windows are {order} apart by class.\n"
        "- Seen from the mean of its kind, a bridged window points the way of its own true one "
        f"with a cosine of {alike:.2f}: 1 would be perfect, 0 knows only the mean. Bridged "
        f"windows spread {wider:.1f} times as far; a cosine loss leaves lengths open."
    )
