"""Bayesian linear regression with prior N(0, I) and noise variance 1/4: a model whose evidence and optima are known.

The data are the yacht and energy sets of the UCI repository, X and y standardised and a bias column appended. The
likelihood sees them through their Gram matrix alone, so the few correlations below stand for all rows: any rotation of
the rows has the same Gram matrix, and with it the same evidence, ELBO and optima.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from illia_fn import Normal, gaussian_nll

NOISE_VARIANCE = 0.25

# Lower triangle of the correlations of the features and, last, of the target.
CORRELATIONS = {
    "yacht": (
        308,
        """
        -0.008610665842
        -0.002674075967 -0.046316074074
         0.002928595309  0.339461817637  0.376823283216
        -0.003369350796 -0.086694499560  0.676364576214 -0.380222269195
         0 0 0 0 0
         0.019306170335 -0.028569120111 -0.002967364510 -0.012421130118 -0.001025469708 0.810092224123
        """,
    ),
    "energy": (
        768,
        """
        -0.991901461614
        -0.203781680321  0.195501632789
        -0.868823407704  0.880719516685 -0.292316466195
         0.827747316838 -0.858147673029  0.280975743475 -0.972512237019
         0 0 0 0 0
         0 0 0 0 0 0
         0 0 0 0 0 0 0.212964220757
         0.622272179065 -0.658120226778  0.455671156898 -0.861828252906  0.889430674101
        -0.002586533916  0.269840996321  0.087367593708
        """,
    ),
}


class Problem(NamedTuple):
    x: np.ndarray  # (n, p), the last column is the bias
    y: np.ndarray  # (n,)
    loc: np.ndarray  # posterior mean: the optimum of any Gaussian q
    precision: np.ndarray  # posterior precision, (p, p)
    log_evidence: float

    @property
    def scale(self) -> np.ndarray:
        """The scales of the mean-field optimum."""
        return 1 / np.sqrt(np.diag(self.precision))

    def kl(self, loc: np.ndarray, scale: np.ndarray) -> float:
        """KL(N(loc, scale^2) || N(0, I)), the textbook form in float64."""
        return float(np.sum(0.5 * (loc**2 + scale**2 - 1) - np.log(scale)))

    def elbo(self, loc: np.ndarray, scale: np.ndarray) -> float:
        """The ELBO of N(loc, scale^2), exactly."""
        squares = np.sum((self.y - self.x @ loc) ** 2) + np.sum(scale**2 * np.sum(self.x**2, axis=0))
        log_likelihood = -0.5 * (squares / NOISE_VARIANCE + len(self.y) * np.log(2 * np.pi * NOISE_VARIANCE))
        return float(log_likelihood - self.kl(loc, scale))


def problem(name: str) -> Problem:
    n, triangle = CORRELATIONS[name]
    values = np.array(triangle.split(), float)
    p = int((1 + np.sqrt(1 + 8 * len(values))) / 2)  # features, and the target for the bias column
    correlations = np.eye(p)
    correlations[np.tril_indices(p, -1)] = values
    correlations = correlations + np.tril(correlations, -1).T
    order = [*range(p - 1), p, p - 1]  # the bias is uncorrelated with everything
    gram = n * np.eye(p + 1)
    gram[:p, :p] = n * correlations
    gram = gram[np.ix_(order, order)]
    eigenvalues, vectors = np.linalg.eigh(gram)
    rows = np.sqrt(np.maximum(eigenvalues, 0))[:, None] * vectors.T
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(n, p + 1)))
    data = rotation @ rows
    x, y = data[:, :-1], data[:, -1]
    precision = x.T @ x / NOISE_VARIANCE + np.eye(p)
    loc = np.linalg.solve(precision, x.T @ y / NOISE_VARIANCE)
    covariance = x @ x.T + NOISE_VARIANCE * np.eye(n)
    log_evidence = -0.5 * (
        y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1] + n * np.log(2 * np.pi)
    )
    return Problem(x, y, loc, precision, float(log_evidence))


def loss_at(loss, num_samples, **options):
    """An objective of twenty rows and this likelihood, as a function of q, x, y, key and temperature."""

    def run(q, x, y, key, temperature):
        likelihood = partial(gaussian_nll, scale=NOISE_VARIANCE**0.5)
        given = {"num_data": 20, "loss_fn": likelihood, "prior": Normal(0.0, 1.0), "temperature": temperature}
        return loss(lambda w, x: x @ w["w"], q, x, y, key, num_samples, **given, **options)

    return run
