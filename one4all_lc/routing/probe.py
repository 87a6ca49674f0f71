"""Ridge regression from vectors to experts, with every exemplar's held-out value in closed form.

With few exemplars it works in a kernel of cosines, so that a wide domain may consist of many small
places; with many it is linear, for a kernel would be read whole by every question. Leaving one
exemplar out changes its own value from f to y - (y - f) / (1 - leverage): no fit is repeated.
Source: Rifkin and Lippert, Notes on regularized least squares, 2007.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from one4all_lc.routing.spaces import Array

MOST = 2000
"""Rows up to which the kernel is used: solving for it takes their number cubed."""
LINEAR_RIDGE = 1.0


@dataclass(frozen=True)
class Probe:
    """A fitted regression.

    Attributes:
        width: Of the kernel exp((cosine - 1) / width); 0 for a linear one.
        weights: (n, c) weights of the n rows, or (d, c) of a linear probe's dimensions.
    """

    width: float
    weights: Array

    @classmethod
    def fit(cls, rows: Array, targets: Array, width: float, ridge: float) -> tuple[Self, Array]:
        """Fit, and return the held-out values of the rows as well.

        Args:
            rows: (n, d) unit vectors.
            targets: (n, c).
            width: Of the kernel; ignored if there are more than `MOST` rows.
            ridge: Added to the kernel's diagonal.

        Returns:
            The probe and (n, c) what it gives for each row when that row is left out.
        """
        wide = rows.astype("f8")
        if len(rows) > MOST:
            inverse = np.linalg.inv(wide.T @ wide + LINEAR_RIDGE * np.eye(wide.shape[1]))
            weights = inverse @ (wide.T @ targets)
            leverage = ((wide @ inverse) * wide).sum(1)[:, None]
            held_out = targets - (targets - wide @ weights) / np.maximum(1 - leverage, 1e-6)
            return cls(0.0, weights.astype("f4")), held_out.astype("f4")
        kernel = np.exp((wide @ wide.T - 1) / width)
        inverse = np.linalg.inv(kernel + ridge * np.eye(len(wide)))
        weights = inverse @ targets
        held_out = targets - weights / np.diag(inverse)[:, None]
        return cls(width, weights.astype("f4")), held_out.astype("f4")

    @property
    def linear(self) -> bool:
        """Whether it reads vectors; else it reads their cosines to the rows it was fitted on."""
        return self.width == 0

    def of_vectors(self, queries: Array) -> Array:
        """Return the values (q, c) of unit vectors (q, d), if it is linear."""
        return np.asarray(queries @ self.weights, "f4")

    def of_cosines(self, cosines: Array) -> Array:
        """Return the values (q, c) by cosines (q, n) to its rows, if it is not linear."""
        return np.asarray(np.exp((cosines - 1) / np.float32(self.width)) @ self.weights, "f4")


def membership(owners: NDArray[np.intp], count: int, fill: float = 0.0) -> Array:
    """Return targets (n, c): 1 for a row's own expert, `fill` elsewhere."""
    targets = np.full((len(owners), count), fill, "f4")
    targets[np.arange(len(owners)), owners] = 1
    return targets
