"""equinox."""

import inspect
from typing import Any

import jax

from illia_fn._base.checks import describe
from illia_fn._base.trees import PyTree, is_floating
from illia_fn.frameworks._checks import call_keywords, check_floating
from illia_fn.frameworks.functional import FunctionalModel


def from_equinox(
    model: Any, state: Any = None, *, train: dict[str, Any] | None = None, evaluate: dict[str, Any] | None = None
) -> FunctionalModel:
    """The functions of an equinox model, which is for one example and is mapped over the batch.

    Its floating-point arrays are `params`. If its call takes `key`, each example has one of its own in training, made
    from the key of the Monte Carlo sample; evaluation is in `eqx.nn.inference_mode`.

    Args:
        model: model(x), model(x, key=key), model(x, state) or model(x, state, key=key), of one example x; with a
            state it returns (outputs, state).
        state: the `eqx.nn.State` of a model that `eqx.nn.make_with_state` made, or None.
        train: further keyword arguments of its call in training.
        evaluate: further keyword arguments of its call in evaluation.

    Raises:
        TypeError: for what is no module, or a state that is none.
        ValueError: for a model with a state, such as batch statistics, and none given, or one whose layers of batch
            normalisation name their axes differently.

    >>> import equinox as eqx, jax.numpy as jnp
    >>> net = eqx.nn.Sequential([eqx.nn.Linear(3, 2, key=jax.random.key(0)), eqx.nn.Dropout(0.1)])
    >>> model = from_equinox(net)
    >>> model.eval_fn()(model.params, jnp.ones((5, 3))).shape
    (5, 2)
    """
    import equinox as eqx

    _check_model(model, state)
    axis_name = _axis_name(model)
    in_training, in_evaluation = call_keywords("from_equinox", train, evaluate)
    key_parameter = inspect.signature(model).parameters.get("key")
    params, of_training = eqx.partition(eqx.nn.inference_mode(model, value=False), is_floating)
    _, of_evaluation = eqx.partition(eqx.nn.inference_mode(model), is_floating)
    check_floating("from_equinox", "model", params)

    def run(params: PyTree, static: Any, state: Any, x: Any, keys: Any, keywords: dict[str, Any]) -> tuple[Any, PyTree]:
        merged = eqx.combine(params, static)

        def example(x: Any, key: Any) -> Any:
            given = keywords if key_parameter is None else {"key": key, **keywords}
            return merged(x, _copied(state), **given) if has_state else (merged(x, **given), ())

        return jax.vmap(example, out_axes=(0, None), axis_name=axis_name)(x, keys)

    def training(params: PyTree, state: Any, x: Any, key: jax.Array) -> tuple[Any, PyTree]:
        return run(params, of_training, state, x, jax.random.split(key, _batch_size(x)), in_training)

    def evaluation(params: PyTree, state: Any, x: Any) -> Any:
        # a call that insists on a key may split it, whether it is used or not
        insists = key_parameter is not None and key_parameter.default is inspect.Parameter.empty
        keys = jax.random.split(jax.random.key(0), _batch_size(x)) if insists else None
        return run(params, of_evaluation, state, x, keys, in_evaluation)[0]

    def rebuild(params: PyTree, state: Any) -> Any:
        rebuilt = eqx.combine(params, of_evaluation)
        return (rebuilt, _copied(state)) if has_state else rebuilt

    has_state = state is not None
    return FunctionalModel(params, state if has_state else (), training, evaluation, rebuild)


def _copied(state: Any) -> Any:
    """The state in a container of its own: equinox makes that invalid which a layer has updated."""
    return jax.tree.map(lambda leaf: leaf, state)


def _batch_size(x: Any) -> int:
    return len(jax.tree.leaves(x)[0])


def _check_model(model: Any, state: Any) -> None:
    import equinox as eqx

    if not isinstance(model, eqx.Module) or not callable(model):
        raise TypeError(
            f"from_equinox: model must be a callable equinox.Module, got {describe(model)}."
            + (" Pass its two elements, from_equinox(*pair)." if isinstance(model, tuple) else "")
        )
    if state is not None and not isinstance(state, eqx.nn.State):
        raise TypeError(f"from_equinox: state must be an equinox.nn.State or None, got {describe(state)}.")
    nodes = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, eqx.nn.StateIndex))
    if state is None and any(isinstance(node, eqx.nn.StateIndex) for node in nodes):
        raise ValueError(
            "from_equinox: model has a state, such as batch statistics, and none was given. Make it with "
            "model, state = eqx.nn.make_with_state(Net)(...), and pass both."
        )


def _axis_name(model: Any) -> Any:
    """The name of the batch axis, as the layers of batch normalisation tell it."""
    import equinox as eqx

    def has_name(node: Any) -> bool:
        return isinstance(node, eqx.Module) and hasattr(node, "axis_name")

    nodes = [node for node in jax.tree.leaves(model, is_leaf=has_name) if has_name(node)]
    names = {name for node in nodes for name in _names(node.axis_name)}
    if len(names) > 1:
        raise ValueError(
            f"from_equinox: the layers of model must name the batch axis alike, got {sorted(map(str, names))}."
        )
    return next(iter(names), None)


def _names(axis_name: Any) -> tuple[Any, ...]:
    return tuple(axis_name) if isinstance(axis_name, (tuple, list)) else (axis_name,)
