"""haiku."""

import inspect
from typing import Any

import jax

from illia_fn._base.checks import describe
from illia_fn._base.trees import PyTree
from illia_fn.frameworks._checks import call_keywords, check_floating
from illia_fn.frameworks.functional import FunctionalModel


def from_haiku(
    model: Any,
    params: PyTree,
    state: PyTree = None,
    *,
    train: dict[str, Any] | None = None,
    evaluate: dict[str, Any] | None = None,
) -> FunctionalModel:
    """The functions of a haiku model, `hk.transform` or `hk.transform_with_state`, and what its `init` returned.

    Training takes the key of the Monte Carlo sample as rng, unless the model is `hk.without_apply_rng`; evaluation has
    none.

    Args:
        model: the transformed function.
        params: its parameters.
        state: its state, if it is one of `hk.transform_with_state`.
        train: keyword arguments of its call in training, such as {"is_training": True}.
        evaluate: keyword arguments of its call in evaluation.

    Raises:
        TypeError: for what is no transformed function.
        ValueError: for a model with a state and none given, and the other way round.

    >>> import haiku as hk, jax.numpy as jnp
    >>> def net(x, is_training):
    ...     x = hk.Linear(2)(x)
    ...     return hk.dropout(hk.next_rng_key(), 0.1, x) if is_training else x
    >>> net = hk.transform(net)
    >>> params = net.init(jax.random.key(0), jnp.ones((5, 3)), is_training=False)
    >>> model = from_haiku(net, params, train={"is_training": True}, evaluate={"is_training": False})
    >>> model.eval_fn()(model.params, jnp.ones((5, 3))).shape
    (5, 2)
    """
    import haiku as hk

    if not isinstance(model, (hk.Transformed, hk.TransformedWithState)):
        raise TypeError(
            f"from_haiku: model must be what hk.transform or hk.transform_with_state returns, got {describe(model)}."
        )
    has_state = isinstance(model, hk.TransformedWithState)
    if has_state != (state is not None):
        raise ValueError(
            "from_haiku: model is of hk.transform_with_state, whose init returns (params, state): pass both."
            if has_state
            else "from_haiku: model is of hk.transform and has no state, but one was given. Transform it with "
            "hk.transform_with_state."
        )
    check_floating("from_haiku", "params", params)
    in_training, in_evaluation = call_keywords("from_haiku", train, evaluate)
    takes_rng = "rng" in inspect.signature(model.apply).parameters  # unless hk.without_apply_rng

    def run(params: PyTree, state: PyTree, x: Any, key: jax.Array | None, keywords: dict[str, Any]) -> Any:
        trees, rng = (params, state) if has_state else (params,), (key,) if takes_rng else ()
        result = model.apply(*trees, *rng, x, **keywords)
        return result if has_state else (result, state)

    return FunctionalModel(
        params,
        state if has_state else (),
        lambda params, state, x, key: run(params, state, x, key, in_training),
        lambda params, state, x: run(params, state, x, None, in_evaluation)[0],
        lambda params, state: (params, state) if has_state else params,
    )
