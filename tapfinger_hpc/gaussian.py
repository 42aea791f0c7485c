"""Gaussian processes: what values known at some points say of others. Pure, numpy alone; many priors side by side.

Leading axes of all arrays are batches, one for each prior that is tried.
"""

from typing import NamedTuple

import numpy as np


class Known(NamedTuple):
    """What was seen, ready to be asked about other points."""

    lower: np.ndarray
    """float64 [..., n, n] Cholesky factor of the covariance of what was seen, its noise included."""
    whitened: np.ndarray
    """float64 [..., n] what was seen beyond the prior's mean, uncorrelated."""


def alike(one: np.ndarray, other: np.ndarray, length: np.ndarray | float) -> np.ndarray:
    """Exponential correlation [..., n, m] of points [n] and [m] of a line; curves are continuous, and may have steps.

    Args:
        length: float64 [...] distance over which values are alike.
    """
    return np.exp(-np.abs(one[:, None] - other[None]) / np.asarray(length)[..., None, None])


def known(covariance: np.ndarray, rest: np.ndarray) -> Known:
    """Takes in values [..., n] beyond the mean, with this covariance [..., n, n]."""
    lower = np.linalg.cholesky(covariance)
    return Known(lower, np.linalg.solve(lower, rest[..., None])[..., 0])


def log_evidence(seen: Known) -> np.ndarray:
    """Log density [...] of what was seen, but for the constant that all priors share."""
    diagonal = np.diagonal(seen.lower, axis1=-2, axis2=-1)
    return -0.5 * (seen.whitened**2).sum(axis=-1) - np.log(diagonal).sum(axis=-1)


def predicted(seen: Known, across: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean beyond the prior's, and variance, [..., m] each.

    Args:
        across: float64 [..., n, m] covariance of what was seen with what is asked.
        variance: float64 [..., m] prior variance of what is asked.
    """
    gains = np.linalg.solve(seen.lower, across)
    mean = np.einsum("...nm,...n->...m", gains, seen.whitened)
    return mean, np.maximum(0.0, variance - (gains**2).sum(axis=-2))
