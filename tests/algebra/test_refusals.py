"""Each mistake gets an error that names the call, what came and what to do."""

from functools import partial

import jax
import numpy as np
import pytest
from families import array
from points import Point

import illia_fn
from illia_fn import (
    Normal,
    full_covariance,
    low_rank,
    matrix_normal,
    mean_field,
    moment_match,
    product,
    tempered,
)

KEY = jax.random.key(0)


def ones(*shape):
    return array(np.ones(shape))


Q = {"w": mean_field(ones(4, 3), scale=0.5), "b": ones(3)}
HEAD = {"head": full_covariance({"kernel": ones(2, 2), "bias": ones(2)}), "body": mean_field(ones(2))}
NARROW = Normal(0.0, 0.3)


OWN = {"w": Point(ones(3))}

CASES = {
    "none": (lambda: product(), "product: there must be at least one"),
    "no nodes": (lambda: product({"w": ones(2)}), "product, of posterior number 0: q has no posterior node"),
    "another shape": (lambda: product(Q, Q | {"w": mean_field(ones(2))}), "product: all posteriors must be over the same parameters"),
    "another structure": (lambda: product(Q, {"w": Q["w"]}), "product: all posteriors must be over the same parameters"),
    "deterministic in one": (lambda: product(Q, Q | {"b": mean_field(ones(3))}), r"product: params\['b'\] is deterministic in posterior number 0"),
    "deterministic and apart": (lambda: product(Q, Q | {"b": array([0.0] * 3)}), r"params\['b'\] is deterministic and differs .* 0 and 1. Train"),
    "too much prior": (lambda: product(Q, Q, Q, Q, Q, prior=NARROW), r"product at params\['w'\]: the prior, taken out 4 times, is more precise"),
    "too much prior, full": (lambda: product(*[full_covariance(ones(3), scale=0.5)] * 5, prior=NARROW), "the prior, taken out 4 times"),
    "too much prior, low rank": (lambda: product(*[low_rank(ones(3), 1, scale=0.5, key=KEY)] * 5, prior=NARROW), "the prior, taken out 4 times"),
    "matrices": (lambda: product(*[matrix_normal({"w": ones(4, 3)})] * 2), r"product at params\['w'\]: the product of MatrixNormal is of none of the families.*moment_match"),
    "a family of one's own": (lambda: product(OWN, OWN), r"product: params\['w'\] is a Point in posterior number 0"),
    "a prior that is no Gaussian": (lambda: product(Q, Q, prior=illia_fn.priors.ScaleMixture(0.5, 1.0, 0.1)), "must be Gaussian, got a ScaleMixture"),
    "a prior of another shape": (lambda: product(Q, Q, prior=Normal(array([0.0] * 3), 1.0)), r"product at params\['w'\]: .*shape \(3,\)"),
    "a number for a prior": (lambda: product(Q, Q, prior=1.0), r"pass illia_fn.Normal\(0.0, 1.0\)"),
    # powers
    "no temperature": (lambda: tempered(Q, 0.0), "tempered: temperature must be a positive, finite number, got 0.0"),
    "a tree of temperatures": (lambda: tempered(Q, {"w": 1.0}), "tempered: temperature must be a positive, finite number"),
    "powers of no nodes": (lambda: tempered({"w": ones(2)}, 2.0), "tempered: q has no posterior node"),
    "powers of a family of one's own": (lambda: tempered(OWN, 2.0), r"tempered: q\['w'\] is a Point"),
    # families
    "no families": (lambda: moment_match(Q, full_covariance), "moment_match: families must be a dict"),
    "no such path": (lambda: moment_match(Q, {"v": full_covariance}), "moment_match: the pattern 'v' matches no path"),
    "deterministic": (lambda: moment_match(Q, {"b": mean_field}), r"moment_match: the patterns name q\['b'\], which is deterministic"),
    "a part of a node": (lambda: moment_match(HEAD, {"head/kernel": mean_field}), r"moment_match: q\['head'\] is one FullCovariance, and the patterns name a part of it alone"),
    "no node in the tree": (lambda: moment_match({"w": ones(2)}, {"w": mean_field}), "moment_match: q has no posterior node"),
    "more than is known": (lambda: moment_match(OWN, {"w": full_covariance}), r"moment_match: q\['w'\] is a Point, of which it knows the mean .*Match it with mean_field"),
    "to a family of one's own": (lambda: moment_match(Q, {"w": Point}), r"moment_match: the family of \['w'\] must be .*got one that makes a Point"),
    "a rank that is too high": (lambda: moment_match(Q, {"w": partial(low_rank, rank=13, key=KEY)}), "moment_match: at 'w', by the pattern 'w': low_rank: rank must be at most"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name):
    call, message = CASES[name]
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        call()


def test_a_family_of_ones_own_has_marginals():
    q = moment_match(OWN, {"w": mean_field})
    np.testing.assert_allclose(q["w"].stddev, 1.0, rtol=1e-6)
    np.testing.assert_array_equal(q["w"].loc, OWN["w"].loc)
