"""flax.linen."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from illia_fn._base.checks import describe
from illia_fn._base.trees import PyTree
from illia_fn.frameworks._checks import call_keywords, check_floating
from illia_fn.frameworks.functional import FunctionalModel


def from_linen(
    module: Any,
    variables: dict[str, PyTree],
    *,
    train: dict[str, Any] | None = None,
    evaluate: dict[str, Any] | None = None,
    rngs: Sequence[str] = ("dropout",),
) -> FunctionalModel:
    """The functions of a flax.linen module and its variables.

    The collection "params" is `params`, and all others are `state`, mutable in training.

    Args:
        module: the module.
        variables: what its `init` returned.
        train: keyword arguments of its call in training, such as {"train": True} or {"deterministic": False}.
        evaluate: keyword arguments of its call in evaluation.
        rngs: the names of its streams of random numbers, each with a key of its own in training.

    Raises:
        TypeError: for what is no module, variables that are no dict, or keyword arguments that are none.
        ValueError: for variables without "params".

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train):
    ...         return nn.Dropout(0.1, deterministic=not train)(nn.Dense(2)(x))
    >>> variables = Net().init(jax.random.key(0), jnp.ones((5, 3)), train=False)
    >>> model = from_linen(Net(), variables, train={"train": True}, evaluate={"train": False})
    >>> model.eval_fn()(model.params, jnp.ones((5, 3))).shape
    (5, 2)
    """
    import flax.linen as nn
    from flax.core import unfreeze

    if not isinstance(module, nn.Module):
        raise TypeError(f"from_linen: module must be an instance of flax.linen.Module, got {describe(module)}.")
    if not isinstance(variables, Mapping):
        raise TypeError(f"from_linen: variables must be the dict that module.init returns, got {describe(variables)}.")
    if "params" not in variables:
        raise ValueError(
            f'from_linen: variables must have "params", got {", ".join(map(str, variables)) or "nothing"}. Pass all '
            "that module.init returned."
        )
    if isinstance(rngs, str):
        raise TypeError(f'from_linen: rngs must be a sequence of names, such as ("{rngs}",), got {rngs!r}.')
    variables = unfreeze(variables)
    check_floating("from_linen", 'variables["params"]', variables["params"])
    in_training, in_evaluation = call_keywords("from_linen", train, evaluate)
    collections = [name for name in variables if name != "params"]

    def variables_of(params: PyTree, state: PyTree) -> dict[str, PyTree]:
        return {"params": params, **state}

    def training(params: PyTree, state: PyTree, x: Any, key: jax.Array) -> tuple[Any, PyTree]:
        keys = {name: jax.random.fold_in(key, index) for index, name in enumerate(rngs)}
        outputs, new = module.apply(variables_of(params, state), x, rngs=keys, mutable=collections, **in_training)
        return outputs, {name: new[name] for name in collections}

    return FunctionalModel(
        variables["params"],
        {name: variables[name] for name in collections},
        training,
        lambda params, state, x: module.apply(variables_of(params, state), x, **in_evaluation),
        variables_of,
    )
