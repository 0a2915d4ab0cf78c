"""Linear centred kernel alignment between two sets of features (equation 5)."""

import numpy as np


def linear_cka(X: np.ndarray, Y: np.ndarray, debiased: bool = False) -> float:
    """Linear CKA of two representations of the same windows.

    Computed in feature space or, where features are many, with n x n Gram matrices, whichever is
    smaller; the value is the same.

    Parameters
    ----------
    X : ndarray, [n, d_x]
    Y : ndarray, [n, d_y]
    debiased : bool
        False: the ratio of biased HSIC estimates, as published (Kornblith et al., 2019). It grows
        with feature width: independent features of widths 768 and 200 give 0.63 at n = 200.
        True: the unbiased HSIC of Song et al. (2012), as in Nguyen et al. (2021), whose
        expectation for independent features is 0; it can fall slightly below 0.

    Returns
    -------
    float
        1 for representations equal up to rotation and scale; 0 for unrelated ones; NaN if there
        are too few windows for the width of the features.

    Raises
    ------
    ValueError
        Different numbers of windows, fewer than 4 of them, values that are not finite, or a
        representation that is the same for every window (its CKA is undefined).
    """
    X, Y = _centred(X, "X"), _centred(Y, "Y")
    if len(X) != len(Y):
        raise ValueError(
            f"linear_cka: expected as many rows in X as in Y, found {len(X)}, {len(Y)}"
        )
    hsic = _unbiased_hsic if debiased else _biased_hsic
    xx, yy = hsic(X, X), hsic(Y, Y)
    if xx <= 0 or yy <= 0:
        return float("nan")
    return float(hsic(X, Y) / np.sqrt(xx * yy))


def few_features(X: np.ndarray) -> np.ndarray:
    """Reduce very many features [n, d], such as flattened tokens, to at most n: [n, <= n].

    Inner products of differences between windows stay, and CKA depends on nothing else.
    """
    if X.shape[1] <= len(X):
        return X
    gram = np.zeros((len(X), len(X)))
    for start in range(0, X.shape[1], 4096):  # never all of X in double precision
        part = X[:, start : start + 4096].astype(np.float64)
        part -= part.mean(axis=0)
        gram += part @ part.T
    values, vectors = np.linalg.eigh(gram)
    return vectors * np.sqrt(values.clip(min=0))


def _centred(X: np.ndarray, name: str) -> np.ndarray:
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or len(X) < 4:
        raise ValueError(
            f"linear_cka: expected {name} as [n, features] with n >= 4, found {X.shape}"
        )
    if not np.isfinite(X).all():
        raise ValueError(f"linear_cka: expected finite values in {name}, found NaN or infinity")
    if not varies(X):
        raise ValueError(f"linear_cka: expected {name} to vary between windows, found a constant")
    return X - X.mean(axis=0)


def varies(X: np.ndarray) -> bool:
    """Whether features [n, d] differ between windows by more than rounding, or are not finite."""
    X = np.asarray(X, dtype=np.float64)
    return not np.all(np.abs(X - X.mean(axis=0)) <= 1e-12 * max(1.0, np.abs(X).max(initial=0.0)))


def _biased_hsic(X: np.ndarray, Y: np.ndarray) -> float:
    """tr(K L) of centred features: squared Frobenius norm of their cross-product."""
    if X.shape[1] * Y.shape[1] > len(X) ** 2:
        return np.sum((X @ X.T) * (Y @ Y.T))
    return np.sum((X.T @ Y) ** 2)


def _unbiased_hsic(X: np.ndarray, Y: np.ndarray) -> float:
    """HSIC_1 of Song et al. (2012), with K~ and L~ the Gram matrices without their diagonals.

    ``tr(K~ L~) + (1' K~ 1)(1' L~ 1) / ((n-1)(n-2)) - 2 (1' K~ L~ 1) / (n-2)``, up to 1/(n(n-3)),
    which cancels in CKA. For centred features K 1 = 0, so K~ 1 = -diag(K).
    """
    n = len(X)
    k, l = np.sum(X * X, axis=1), np.sum(Y * Y, axis=1)
    trace = _biased_hsic(X, Y) - np.sum(k * l)
    return trace + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * np.sum(k * l) / (n - 2)
