"""From a plan to outputs: the transform, and the Monte Carlo mean that the objectives take."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from illia_fn._base.checks import check_callable, check_key, describe
from illia_fn._base.noise import subkeys
from illia_fn._base.sharding import gathered, mesh_of, vary_along, varying_axes
from illia_fn._base.trees import PyTree
from illia_fn.coupling._joint import separated
from illia_fn.coupling._model import Model, trace
from illia_fn.coupling._noise import Noise
from illia_fn.coupling._plan import Plan, make_plan, outputs, weights
from illia_fn.coupling._strategies import Coupling
from illia_fn.engine._accumulate import sum_over_chunks
from illia_fn.engine._eager import compiled_once
from illia_fn.engine._latin_hypercube import Strata
from illia_fn.engine.chunks import ChunkSize, chosen

_SPREAD = 64  # of more samples, about so many at a time are spread together, or a chunk if that is larger


class Coupled(NamedTuple):
    """A model with a plan for the noise of its weights."""

    model: Model
    plan: Plan

    @staticmethod
    def of(
        caller: str, apply_fn: Callable[..., Any], q: PyTree, x: PyTree, key: jax.Array | None, coupling: Coupling
    ) -> "Coupled":
        """Traces and plans; `key` is one that apply_fn would take, or None."""
        check_callable(caller, "apply_fn", apply_fn)
        check_coupling(caller, coupling)
        q, factors = separated(q)
        model = trace(caller, apply_fn, q, x, key)._replace(factors=factors)
        return Coupled(model, make_plan(model, coupling))

    def noise(self, key: jax.Array, strata: Strata) -> Noise:
        """Noise of some samples, for all examples."""
        return self.plan.noise.draw(key, self.model.batch_size, strata)

    def outputs(self, noise: Noise, num_samples: int, x: PyTree, *keys: jax.Array) -> PyTree:
        """Outputs of all samples and examples, (S, B, ...), from keys (S, B) if apply_fn takes one.

        What is not mapped over is computed once, so that the samples share what they can.
        """
        with mesh_of((self.model.nodes, x)):
            return self._outputs(noise, num_samples, x, *keys)

    def _outputs(self, noise: Noise, num_samples: int, x: PyTree, *keys: jax.Array) -> PyTree:
        nodes, noise, keys = self._laid_like(x, noise, keys)
        parts, leaves_axis = tuple(noise), 0
        if num_samples == 1:  # a kernel that is mapped over, even if it is one, makes a grouped convolution
            parts, leaves_axis = tuple(noise._replace(leaves=jax.tree.map(lambda leaf: leaf[0], noise.leaves))), None

        def example(parts: tuple[Any, ...], x: list[jax.Array], *key: jax.Array) -> list[jax.Array]:
            noise, one = Noise(*parts), [leaf[None] for leaf in x]
            values = weights(nodes, self.model.factors, self.plan, noise)
            context = self.plan.context(noise, fenced=self.model.takes_max)
            return [output[0] for output in outputs(context, self.model, values, [*one, *key])]

        keys_axes = [0] * len(keys)
        batch = jax.vmap(example, ((None, 0, 0, 0), 0, *keys_axes))
        samples = jax.vmap(batch, ((leaves_axis, 0, 0, None), None, *keys_axes), axis_size=num_samples)
        return self.model.outputs.unflatten(samples(parts, jax.tree.leaves(x), *keys))

    def _laid_like(self, x: PyTree, noise: Noise, keys: Any) -> tuple[list[Any], Noise, Any]:
        """What every example has of its own, sharded as the examples are on a mesh whose axes are explicit."""
        shardings = [jax.typeof(leaf).sharding for leaf in jax.tree.leaves(x)]
        sharded = [(of.mesh, of.spec[0]) for of in shardings if of.spec[0] is not None]
        if not sharded:
            return self.model.nodes, noise, keys
        mesh, axes = sharded[0]
        of_samples, of_examples = NamedSharding(mesh, P(None, axes)), NamedSharding(mesh, P(axes))
        examples, sites, keys = jax.sharding.reshard((noise.examples, noise.sites, keys), of_samples)
        signs = jax.sharding.reshard(noise.signs, of_examples)
        nodes = [
            jax.tree.map(partial(gathered, axes=axes), node) if leaf.strategy == "per_example" else node
            for node, leaf in zip(self.model.nodes, self.plan.leaves, strict=True)
        ]
        return nodes, Noise(noise.leaves, examples, sites, signs), keys


def check_coupling(caller: str, coupling: Any) -> None:
    """One of the couplings."""
    if coupling not in get_args(Coupling):
        raise ValueError(
            f"{caller}: coupling must be one of {', '.join(get_args(Coupling))}, got {describe(coupling)}."
        )


def decorrelate(
    apply_fn: Callable[..., Any], *, coupling: Coupling = "decorrelated", needs_key: bool = False
) -> Callable[[PyTree, PyTree, jax.Array], PyTree]:
    """The model with noise of its own for every example: f(q, x, key) -> outputs.

    Output i has the law of apply_fn(w, x_i) with w ~ q, in all its entries jointly, as it has with one w for the batch;
    but the outputs of different examples are uncorrelated given x, or nearly so, where one w moves them together. So a
    mean over the batch, and its gradient, has the same expectation and a lower variance. No layer changes: `apply_fn`
    is traced on a batch of one example and evaluated with the noise that suits each leaf of q (see `explain_coupling`):

    - local_reparam, the output is drawn in the place of the weights, y ~ N(x mean, x^2 scale^2): Kingma et al. 2015,
      https://arxiv.org/abs/1506.02557; where each element of the leaf reaches one output of an example.
    - flipout, W_i = mean + scale * noise * signs_i with one noise for the batch: Wen et al. 2018,
      https://arxiv.org/abs/1803.04386; where W is used linearly, however often. One sign serves all of a posterior over
      numbers that are not independent; `MatrixNormal` has signs along its noise, `LowRank` coefficients of
      one or two directions.
    - per_example, a draw for each example: element-wise leaves, such as biases, no larger than what they meet; and
      factors of a product of weights that move to the inputs or the outputs, f(x, W o r s^T) = s o f(r o x, W), such as
      those of `rank_one`: Dusenberry et al. 2020, https://arxiv.org/abs/2005.07186.
    - shared, one draw for the batch: all else, such as weights under a norm, with all weights of their posterior, and
      kernels of families whose draws are not linear in their noise.

    Weights that are concatenated or stacked, and used nowhere else, are one weight from there on.

    One call is one sample; calls with different keys are independent, other than the samples of `elbo_loss`, which are
    spread evenly. There is no single network behind the outputs of a batch: joint predictions, and bounds that need one
    w, need coupling="shared". Examples must not interact, as under batch normalisation in training mode: a model
    that is traced on one example hides that (see `check_separable`).

    Args:
        apply_fn: the model, apply_fn(params, x) -> outputs, with a leading batch axis throughout; with
            `needs_key=True`, apply_fn(params, x, key), with a key of its own for each example.
        coupling: "decorrelated" takes for each leaf the first strategy above that is exact; "flipout" does without
            local_reparam; "local_reparam" has it for every leaf that is used linearly, which is APPROXIMATE where an
            element reaches more than one output of an example; "shared" is one draw for all leaves.
        needs_key: whether apply_fn takes a key.

    Returns:
        f(q, x, key) of a posterior tree, a pytree of arrays with a leading axis of size B, and a PRNG key.

    Raises:
        ValueError: for an unknown coupling; when called, for outputs without a leading batch axis, a batch size that is
            written into the model, or random numbers for the batch from a key that apply_fn closes over, which would be
            the same for all examples: pass needs_key=True. (What a batch cuts off a fixed number of them is not seen
            here, but by `check_separable`.)
        TypeError: if `key` is not a PRNG key.

    >>> from illia_fn import mean_field
    >>> q = mean_field({"w": jnp.zeros((3, 2))}, scale=0.1)
    >>> f = decorrelate(lambda w, x: x @ w["w"])
    >>> outputs = f(q, jnp.ones((1000, 3)), jax.random.key(0))  # of variance 3 * 0.1^2
    >>> print(outputs.shape, f"{outputs.std():.1f}")
    (1000, 2) 0.2
    """
    check_callable("decorrelate", "apply_fn", apply_fn)
    check_coupling("decorrelate", coupling)

    def coupled(q: PyTree, x: PyTree, key: jax.Array) -> PyTree:
        check_key("decorrelate", key)
        q, x, key = vary_along((q, x, key), varying_axes((q, x, key)))
        noise_key, *apply_key = subkeys(key, 1 + needs_key)
        it = Coupled.of("decorrelate", apply_fn, q, x, *(apply_key or [None]), coupling)
        keys = [jax.random.split(key, (1, it.model.batch_size)) for key in apply_key]

        def of_batch(noise_key: jax.Array, x: PyTree, *keys: jax.Array) -> PyTree:
            noise = it.noise(noise_key, Strata(jnp.arange(1), count=1))
            return jax.tree.map(lambda leaf: leaf[0], it.outputs(noise, 1, x, *keys))

        return compiled_once(of_batch, noise_key, x, *keys)

    return coupled


def _interleave(*sides: jax.Array) -> jax.Array:
    return jnp.stack(sides, axis=1).reshape(-1, *sides[0].shape[1:])


def _keys(key: jax.Array, samples: jax.Array, batch_size: int) -> jax.Array:
    """Keys (S, B), the same for a sample in whatever chunk it is."""
    return jax.vmap(lambda sample: jax.random.split(jax.random.fold_in(key, sample), batch_size))(samples)


def coupled_expectation(
    caller: str,
    f: Callable[[PyTree], tuple[jax.Array, PyTree]],
    apply_fn: Callable[..., Any],
    q: PyTree,
    x: PyTree,
    key: jax.Array,
    num_samples: int,
    *,
    coupling: Coupling,
    chunk_size: ChunkSize,
    antithetic: bool,
    needs_key: bool,
) -> tuple[jax.Array, PyTree]:
    """(1 / S) sum_s value_s and all aux, of f(outputs of s) -> (value, aux): `expectation` without one w for the batch.

    The samples are spread over the law of their noise: see `_latin_hypercube`. A chunk of them is one large batch, but
    for noise that all examples of a sample share (shared, flipout), which is mapped over.
    """
    q, x, key = vary_along((q, x, key), varying_axes((q, x, key)))
    it = Coupled.of(caller, apply_fn, q, x, key if needs_key else None, coupling)
    count = num_samples // 2 if antithetic else num_samples
    chunk_size = chosen(chunk_size, count, q, x, one_batch=not it.plan.noise.leaves)
    size = count if chunk_size is None else min(chunk_size, count)
    num_chunks, num_spreads = -(-count // size), -(-count // max(size, _SPREAD))
    together = min(count, size * -(-num_chunks // num_spreads))
    noise_key, *side_keys = subkeys(key, 3 if needs_key else 1)

    def chunk_sum(samples: jax.Array) -> tuple[jax.Array, PyTree]:
        spread_key = jax.random.clone(noise_key)  # the same noise for all chunks of a spread
        if num_spreads > 1:
            spread_key = jax.random.fold_in(spread_key, samples[0] // together)
        noise = it.noise(spread_key, Strata(samples % together, together, mirrored=antithetic))
        sides = []
        for number, side in enumerate([noise, noise.mirrored()] if antithetic else [noise]):
            apply_keys = [_keys(key, samples, it.model.batch_size) for key in side_keys[number : number + 1]]
            sides.append(jax.vmap(f)(it.outputs(side, len(samples), x, *apply_keys)))
        values, aux = zip(*sides, strict=True)
        totals = [jnp.sum(side) for side in values]
        return sum(totals[1:], start=totals[0]), jax.tree.map(_interleave, *aux)

    total, aux = sum_over_chunks(partial(compiled_once, chunk_sum), jnp.arange(count), chunk_size)
    return total / num_samples, aux
