"""Every operation that maps a weight, followed by every one that moves it: a view is what becomes of the weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coupling_cases import array
from jax.ad_checkpoint import checkpoint_name

from illia_fn.coupling._context import Context
from illia_fn.coupling._interpreter import evaluate
from illia_fn.coupling._layout import AFFINE, LAYOUT
from illia_fn.coupling._noise import along
from illia_fn.coupling._values import View

pytestmark = pytest.mark.promotes

# W -> a W + b with a constant, which JAX takes of any rank beside a scalar; or without one.
MAPS = {
    "add": lambda w, c: c + w,
    "convert_element_type": lambda w, _: jax.lax.convert_element_type(w, jnp.float16).astype(jnp.float32),
    "copy": lambda w, _: jnp.copy(w),
    "copy_p": lambda w, _: jnp.array(w, copy=True),
    "div": lambda w, c: w / (2.0 + jnp.square(c)),
    "mul": lambda w, c: w * c,
    "name": lambda w, _: checkpoint_name(w, "w"),
    "neg": lambda w, _: -w,
    "reduce_precision": lambda w, _: jax.lax.reduce_precision(w, 8, 20),
    "sub": lambda w, c: c - w,
}
OF_A_CONSTANT = {"add", "div", "mul", "sub"}
MOVES = {
    "broadcast_in_dim": lambda w: jnp.broadcast_to(w[None], (2, *w.shape)),
    "dynamic_slice": lambda w: jax.lax.dynamic_slice_in_dim(jnp.atleast_1d(w), jnp.argmax(jnp.ones(3)), 1),
    "reshape": lambda w: w.reshape(-1),
    "rev": lambda w: jnp.flip(jnp.atleast_1d(w), -1),
    "slice": lambda w: jnp.atleast_1d(w)[..., -1:],
    "split": lambda w: jnp.split(jnp.atleast_1d(w), [1], axis=-1)[0],
    "squeeze": lambda w: jnp.squeeze(jnp.expand_dims(w, 0), 0),
    "tile": lambda w: jnp.tile(w, [2] * w.ndim),
    "unstack": lambda w: jnp.unstack(jnp.atleast_1d(w), axis=-1)[-1],
    "stop_gradient": jax.lax.stop_gradient,
    "transpose": lambda w: w.T,
}

# The shape of a leaf, what of it is met first, and the ranks of constants that this may be combined with.
PIECES = {
    "scalar": ((), lambda w: w, (0, 1, 2)),
    "vector": ((6,), lambda w: w, (0, 1)),
    "element of a vector": ((6,), lambda w: w[2], (0, 1, 2)),
    "matrix": ((4, 6), lambda w: w, (0, 2)),
    "element of a matrix": ((4, 6), lambda w: w[1, 2], (0, 1, 2)),
    "row of a matrix": ((4, 6), lambda w: w[1], (0, 1)),
    "rows of a vector": ((6,), lambda w: jnp.broadcast_to(w, (4, 6)), (0, 2)),
    "columns of a vector": ((4,), lambda w: jnp.broadcast_to(w[:, None], (4, 6)), (0, 2)),
}
CONSTANTS = {0: np.float32(0.5), 1: np.asarray(array(6, seed=1)), 2: np.asarray(array(4, 6, seed=2))}


def dense(array, view):
    return np.broadcast_to(np.asarray(array), view.shape)


def evaluated(f, shape, *, probing):
    """f of a view of a leaf, and the leaf's arrays: its mean, perturbation and signs, or positions while probing."""
    axes = range(len(shape))
    if probing:
        signs = {axis: along(np.arange(shape[axis]), axis, len(shape)) for axis in axes}
    else:
        signs = {axis: along(jnp.sign(array(shape[axis], seed=axis)), axis, len(shape)) for axis in axes}
    mean, dev = array(*shape, seed=5), array(*shape, seed=6)
    view = View(0, None if probing else "flipout", shape, jnp.dtype("float32"), mean, dev, signs)
    jaxpr = jax.make_jaxpr(f)(mean)
    (result,) = evaluate(Context(), jaxpr.jaxpr, jaxpr.consts, [view])
    return result, view


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("piece", PIECES)
def test_a_view_is_what_becomes_of_the_weight(name, piece):
    shape, cut, ranks = PIECES[piece]
    tolerance = {"convert_element_type": 5e-3, "reduce_precision": 1e-5}.get(name, 1e-6)
    for rank in ranks if name in OF_A_CONSTANT else ranks[:1]:
        for move in MOVES.values():

            def f(w):
                return move(MAPS[name](cut(w), CONSTANTS[rank]))  # noqa: B023

            view, leaf = evaluated(f, shape, probing=False)
            sign = np.prod([dense(sign, leaf) for sign in leaf.signs.values()], axis=0)
            moved = dense(view.dev, view) * np.prod([dense(sign, view) for sign in view.signs.values()], axis=0)
            expected = f(leaf.mean + leaf.dev * sign)
            np.testing.assert_allclose(dense(view.mean, view) + moved, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("piece", PIECES)
def test_positions_and_copies_are_those_of_the_elements(piece):
    shape, cut, ranks = PIECES[piece]
    coordinates = np.indices(shape).astype(np.float32)
    for rank in ranks:
        for name, move in MOVES.items():

            def f(w):
                return move(cut(w) * np.ones_like(CONSTANTS[rank]))  # noqa: B023

            view, leaf = evaluated(f, shape, probing=True)
            for axis, positions in view.signs.items():
                if name != "dynamic_slice":  # whose window is not known
                    np.testing.assert_array_equal(dense(positions, view), f(coordinates[axis]))
            elements = np.arange(leaf.mean.size, dtype=np.float32).reshape(shape)
            assert view.copies >= np.unique(f(elements), return_counts=True)[1].max()


def test_every_rule_is_here():
    on_meshes = {"pvary", "reshard", "sharding_constraint"}  # see mesh_models.py
    assert MAPS.keys() == AFFINE.keys() - on_meshes
    assert MOVES.keys() == LAYOUT.keys() - on_meshes
