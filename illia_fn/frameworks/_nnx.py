"""flax.nnx."""

from typing import Any

import jax
import jax.numpy as jnp

from illia_fn._base.checks import describe
from illia_fn._base.trees import PyTree, is_floating
from illia_fn.frameworks._checks import call_keywords, check_floating
from illia_fn.frameworks.functional import FunctionalModel


def from_nnx(
    model: Any, *, train: dict[str, Any] | None = None, evaluate: dict[str, Any] | None = None
) -> FunctionalModel:
    """The functions of a flax.nnx model, which itself stays as it is.

    Its floating-point `nnx.Param`s are `params`; all other variables but the keys, such as batch statistics, are
    `state`. In training mode (`model.train()`) every stream of random numbers in it gets a key of its own, made from
    the key of the Monte Carlo sample; evaluation is in the mode of `model.eval()`. What the model sows is left out.

    Args:
        model: an instance of a module.
        train: keyword arguments of its call in training.
        evaluate: keyword arguments of its call in evaluation.

    Raises:
        TypeError: for what is no instance of a module.
        ValueError: for a model without parameters.

    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> net = nnx.Sequential(nnx.Linear(3, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs), nnx.Dropout(0.1, rngs=rngs))
    >>> model = from_nnx(net)
    >>> print(jax.tree.map(jnp.shape, nnx.to_pure_dict(model.state)))
    {'layers': {1: {'mean': (2,), 'var': (2,)}}}
    >>> model.eval_fn(model.state)(model.params, jnp.ones((5, 3))).shape
    (5, 2)
    """
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"from_nnx: model must be an instance of flax.nnx.Module, got {describe(model)}."
            + (" Make one, such as Net(rngs=nnx.Rngs(0))." if isinstance(model, type) else "")
        )
    in_training, in_evaluation = call_keywords("from_nnx", train, evaluate)

    def is_param(_: Any, variable: Any) -> bool:
        return isinstance(variable, nnx.Param) and all(map(is_floating, jax.tree.leaves(variable)))

    def in_mode(name: str) -> Any:
        copied = nnx.clone(model)
        nnx.pop(copied, nnx.Intermediate)
        getattr(copied, name)()
        return copied

    def run(graphdef: Any, params: PyTree, streams: PyTree, state: PyTree, x: Any, keywords: dict[str, Any]) -> Any:
        merged = nnx.merge(graphdef, params, streams, fixed, state, copy=True)
        outputs = merged(x, **keywords)
        nnx.pop(merged, nnx.Intermediate)
        return outputs, nnx.split(merged, *filters)[-1]

    filters = is_param, nnx.RngState, nnx.Param, ...
    of_training = nnx.split(in_mode("train"), *filters)[0]
    of_evaluation, params, streams, fixed, state = nnx.split(in_mode("eval"), *filters)
    check_floating("from_nnx", "the nnx.Params of model", params)
    return FunctionalModel(
        params,
        state,
        lambda params, state, x, key: run(of_training, params, reseeded(streams, key), state, x, in_training),
        lambda params, state, x: run(of_evaluation, params, streams, state, x, in_evaluation)[0],
        lambda params, state: nnx.merge(of_evaluation, params, streams, fixed, state, copy=True),
    )


def reseeded(streams: PyTree, key: jax.Array) -> PyTree:
    """The streams with new keys, each of its own, whatever their names and shapes."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    leaves, structure = jax.tree.flatten(streams)
    return structure.unflatten(
        [
            jax.random.split(jax.random.fold_in(key, index), leaf.shape)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
            for index, leaf in enumerate(leaves)
        ]
    )
