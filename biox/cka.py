"""Linear centred kernel alignment between two sets of features (equation 5)."""

from collections.abc import Iterable

import numpy as np


def linear_cka(X: np.ndarray, Y: np.ndarray, debiased: bool = False) -> float:
    """Linear CKA of two representations of the same windows.

    Works in feature space or, where features are many, with n x n Gram matrices, whichever is
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
        1 for representations equal up to rotation and scale; 0 for unrelated ones.

    Raises
    ------
    ValueError
        Different numbers of windows, fewer than 4 of them, values that are not finite, or a
        representation that is the same for every window (its CKA is undefined).
    """
    X, Y = _checked(X, "X"), _checked(Y, "Y")
    if len(X) != len(Y):
        raise ValueError(
            f"linear_cka: expected as many rows in X as in Y, found {len(X)}, {len(Y)}"
        )
    hsic = _unbiased_hsic if debiased else _biased_hsic
    xx, yy = hsic(X, X), hsic(Y, Y)
    if xx <= 0 or yy <= 0:
        # Too few windows for the width of the features: the ratio would be noise over noise.
        return float("nan")
    return float(hsic(X, Y) / np.sqrt(xx * yy))


def _checked(X: np.ndarray, name: str) -> np.ndarray:
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or len(X) < 4:
        raise ValueError(
            f"linear_cka: expected {name} as [n, features] with n >= 4, found {X.shape}"
        )
    if not np.isfinite(X).all():
        raise ValueError(f"linear_cka: expected finite values in {name}, found NaN or infinity")
    X = X - X.mean(axis=0)
    if not np.any(np.abs(X) > 1e-12 * max(1.0, np.abs(X).max(initial=0.0))):
        raise ValueError(f"linear_cka: expected {name} to vary between windows, found a constant")
    return X


def few_features(X: np.ndarray) -> np.ndarray:
    """Stand-in of at most n features [n, <= n] for very wide ones [n, d], such as flattened tokens.

    Differences between windows keep their inner products, and CKA depends on nothing else.

    Raises
    ------
    ValueError
        Not [n, features], or values that are not finite.
    """
    X = np.asarray(X)
    if X.ndim != 2 or not np.isfinite(X).all():
        raise ValueError(f"few_features: expected finite [n, features], found shape {X.shape}")
    if X.shape[1] <= len(X):
        return X
    values, vectors = np.linalg.eigh(_gram(X))
    return vectors * np.sqrt(values.clip(min=0))


class StreamingCKA:
    """Debiased linear CKA of many pairs of layers, from batches of windows that are then forgotten.

    The mini-batch CKA of Nguyen, Raghu and Kornblith (2021, section 2, "Do Wide and Deep Networks
    Learn the Same Things?"): the unbiased HSIC of Song et al. (2012) is computed in each batch and
    averaged over batches, and CKA is the ratio of these averages. In memory are one batch of one
    layer and a batch x batch matrix a layer, however many windows pass by.

    An exact value over all n windows needs the inner products of windows of different batches.
    That means to keep every flattened layer, or to run the models again for each pair of batches;
    `linear_cka` on `few_features` does the former. Here those products are left out: each average
    is still without bias, only with more noise, and the ratio nears the exact value as batches
    grow. With one batch it is the exact value. A biased estimate cannot be had this way: its bias
    depends on the size of a batch.

    Windows of a batch must be a random draw. Neighbours in time resemble each other, which would
    pass for agreement of the layers: shuffle first, as `biox.positions.flattened_cka` does.

    Examples
    --------
    >>> stream, x = StreamingCKA(), np.eye(8)
    >>> for rows in (slice(0, 4), slice(4, 8)):
    ...     stream.update([x[rows]], [2 * x[rows], 3 * x[rows]])
    >>> stream.value().round(6).tolist()
    [[1.0, 1.0]]
    """

    def __init__(self):
        self._sums: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def update(self, X: Iterable[np.ndarray], Y: Iterable[np.ndarray]) -> None:
        """Add a batch of windows.

        Parameters
        ----------
        X : iterable of M arrays, [n, any]
            A batch of each layer of one model; may be a generator, which is read layer by layer.
        Y : iterable of L arrays, [n, any]
            The same windows in the other model.

        Raises
        ------
        ValueError
            A batch of fewer than 4 windows, layers with different numbers of windows or of another
            number than before, or values that are not finite. Nothing has been added then.
        """
        k, l = _grams_without_diagonal(X, "X"), _grams_without_diagonal(Y, "Y")
        if k.shape[1] != l.shape[1]:
            raise ValueError(
                f"StreamingCKA: expected as many windows in X as in Y, "
                f"found {k.shape[1]}, {l.shape[1]}"
            )
        n = k.shape[1]  # each batch weighs as many windows as it has
        new = tuple(n * h for h in (_hsic_1(k, l), _own_hsic_1(k), _own_hsic_1(l)))
        if self._sums is None:
            self._sums = new
        elif self._sums[0].shape != new[0].shape:
            raise ValueError(
                f"StreamingCKA: expected layers {self._sums[0].shape} as before, "
                f"found {new[0].shape}"
            )
        else:
            self._sums = tuple(old + more for old, more in zip(self._sums, new, strict=True))

    def value(self) -> np.ndarray:
        """CKA so far of every layer of X with every one of Y [M, L]; NaN where undefined.

        Raises
        ------
        ValueError
            There was no batch yet.
        """
        if self._sums is None:
            raise ValueError("StreamingCKA: expected at least one batch, found none")
        xy, xx, yy = self._sums
        xx, yy = (np.where(h > 0, h, np.nan) for h in (xx, yy))
        return xy / np.sqrt(np.outer(xx, yy))


def _gram(X: np.ndarray) -> np.ndarray:
    """Inner products [n, n] of centred rows of [n, d], never all of them in double precision."""
    gram = np.zeros((len(X), len(X)))
    for start in range(0, X.shape[1], 4096):
        part = X[:, start : start + 4096].astype(np.float64)
        part -= part.mean(axis=0)
        gram += part @ part.T
    return gram


def _grams_without_diagonal(layers: Iterable[np.ndarray], name: str) -> np.ndarray:
    """Gram matrix of every layer [layers, n, n] with zeros on its diagonal (K~)."""
    grams = []
    for X in layers:
        X = np.asarray(X)
        rows = grams[0].shape[0] if grams else len(X)
        if X.ndim != 2 or len(X) != rows or rows < 4:
            expected = f"[{rows}, features]" if grams else "[n, features] with n >= 4"
            raise ValueError(
                f"StreamingCKA: expected a layer of {name} as {expected}, found {X.shape}"
            )
        gram = _gram(X)
        if not np.isfinite(gram).all():
            raise ValueError(
                f"StreamingCKA: expected finite values in {name}, found NaN or infinity"
            )
        np.fill_diagonal(gram, 0)
        grams.append(gram)
    if not grams:
        raise ValueError(f"StreamingCKA: expected at least one layer of {name}, found none")
    return np.stack(grams)


def _hsic_1(K: np.ndarray, L: np.ndarray) -> np.ndarray:
    """HSIC_1 of every pair of Gram matrices without diagonals, [M, n, n] and [L, n, n]: [M, L]."""
    n = K.shape[1]
    k, l = K.sum(axis=2), L.sum(axis=2)  # K~ 1 and L~ 1
    trace = K.reshape(len(K), -1) @ L.reshape(len(L), -1).T
    sums = np.outer(k.sum(axis=1), l.sum(axis=1)) / ((n - 1) * (n - 2))
    return (trace + sums - 2 * k @ l.T / (n - 2)) / (n * (n - 3))


def _own_hsic_1(K: np.ndarray) -> np.ndarray:
    """HSIC_1 of each Gram matrix with itself: [layers]."""
    return np.concatenate([_hsic_1(k[None], k[None])[0] for k in K])


def _biased_hsic(X: np.ndarray, Y: np.ndarray) -> float:
    """tr(K L) of centred features: squared Frobenius norm of their cross-product."""
    if X.shape[1] * Y.shape[1] > len(X) ** 2:
        return np.sum((X @ X.T) * (Y @ Y.T))
    return np.sum((X.T @ Y) ** 2)


def _unbiased_hsic(X: np.ndarray, Y: np.ndarray) -> float:
    """Unbiased HSIC from the rows, with K~ and L~ the Gram matrices without their diagonals.

    ``tr(K~ L~) + (1' K~ 1)(1' L~ 1) / ((n-1)(n-2)) - 2 (1' K~ L~ 1) / (n-2)``, up to 1/(n(n-3)),
    which cancels in CKA. For centred features K 1 = 0, so K~ 1 = -diag(K).
    """
    n = len(X)
    k, l = np.sum(X * X, axis=1), np.sum(Y * Y, axis=1)
    trace = _biased_hsic(X, Y) - np.sum(k * l)
    return trace + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * np.sum(k * l) / (n - 2)
