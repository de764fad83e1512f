"""Every picture with small data, as a function of ax, label and color."""

from functools import partial

import jax
import numpy as np

from illia_fn import class_summary, mean_field, plots, summary
from illia_fn.diagnostics import SBC, PruningCurve
from illia_fn.objectives import ELBOTerms

RNG = np.random.default_rng(0)
NUM_NETWORKS, NUM_EXAMPLES, NUM_CLASSES = 5, 40, 3
NETWORKS = RNG.dirichlet(np.ones(NUM_CLASSES), (NUM_NETWORKS, NUM_EXAMPLES)).astype(np.float32)
PROBS = NETWORKS.mean(axis=0)
LABELS = RNG.integers(NUM_CLASSES, size=NUM_EXAMPLES).astype(np.int32)
SUMMARY = class_summary(NETWORKS)
CONFIDENCE = PROBS.max(axis=1)
LOSSES = (PROBS.argmax(axis=1) != LABELS).astype(np.float32)

X = RNG.normal(size=NUM_EXAMPLES).astype(np.float32)
DRAWS = (X + RNG.normal(size=(200, NUM_EXAMPLES))).astype(np.float32)
TARGETS = (X + 1.5 * RNG.normal(size=NUM_EXAMPLES)).astype(np.float32)

WEIGHTS = {"hidden": {"kernel": RNG.normal(size=(6, 4)).astype(np.float32), "bias": np.ones(4, np.float32)}}
Q = mean_field(WEIGHTS, scale=0.2) | {"plain": np.ones(3, np.float32)}
Q = jax.tree.map(np.asarray, Q)
TABLE = summary(Q)
CURVE = PruningCurve(np.array([0.0, 0.5, 1.0]), np.array([0.1, 0.2, 0.9]), np.array([1.0, 0.4, 0.0]))

STEPS = 50
FIELDS = RNG.normal(size=STEPS), RNG.uniform(5.0, 9.0, STEPS), np.full(STEPS, 0.01)
TERMS = ELBOTerms(*(field.astype(np.float32) for field in FIELDS))
RANKS = RNG.integers(64, size=(320, 2)).astype(np.int32)
CALIBRATION = SBC({"w": RANKS}, 63, {"w": np.ones(2)})

PICTURES = {
    "reliability": partial(plots.reliability, PROBS, LABELS),
    "entropy_histogram": partial(plots.entropy_histogram, PROBS),
    "entropy_split": partial(plots.entropy_split, SUMMARY),
    "risk_coverage": partial(plots.risk_coverage, CONFIDENCE, LOSSES),
    "predictive_intervals": partial(plots.predictive_intervals, X, DRAWS, TARGETS),
    "coverage": partial(plots.coverage, DRAWS, TARGETS),
    "posterior_by_layer": partial(plots.posterior_by_layer, Q),
    "kl_by_leaf": partial(plots.kl_by_leaf, TABLE),
    "pruning": partial(plots.pruning, CURVE),
    "training_curves": partial(plots.training_curves, TERMS),
    "sbc_ranks": partial(plots.sbc_ranks, CALIBRATION),
}
