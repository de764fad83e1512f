"""A model of any framework as functions of its parameters and of its state."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from illia_fn._base.checks import check_callable, split_aux
from illia_fn._base.trees import PyTree, leaves_with_path
from illia_fn.engine.state import average_state
from illia_fn.frameworks._checks import check_floating, check_like, check_options


class _Carried(NamedTuple):
    """What goes through an objective as its aux: a state, and what the model itself returns beside its outputs."""

    state: PyTree
    aux: PyTree


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FunctionalModel:
    """f(params, x): a model without its parameters and its state. `from_nnx` and the like make one.

    Randomness is no part of it: in training all of it comes from the key of a Monte Carlo sample, and in evaluation
    there is none.

    Attributes:
        params: the parameters, floating-point arrays only: what `mean_field` takes.
        state: all else that training changes, such as batch statistics; a tree without leaves if there is nothing.
        train: (params, state, x, key) -> (outputs, state), in training mode.
        evaluate: (params, state, x) -> outputs, in evaluation mode.
        rebuild: (params, state) -> the framework's own model, in evaluation mode.

    >>> from illia_fn import mean_field, elbo_loss, predict
    >>> def model(params, x, key):  # with noise of its own, on its inputs
    ...     return (x + 0.1 * jax.random.normal(key, x.shape)) @ params
    >>> model = from_functions(model, lambda params, x: x @ params, jnp.ones((3, 2)))
    >>> q, x, y, key = mean_field(model.params, scale=0.1), jnp.ones((5, 3)), jnp.zeros((5, 2)), jax.random.key(0)
    >>> loss = model.loss(elbo_loss, num_samples=4, num_data=5)
    >>> value, grads = jax.value_and_grad(loss)(q, x, y, key)
    >>> predict(model.eval_fn(), q, x, key, 8).shape
    (8, 5, 2)
    """

    params: PyTree
    state: PyTree
    train: Callable[[PyTree, PyTree, Any, jax.Array], tuple[Any, PyTree]]
    evaluate: Callable[[PyTree, PyTree, Any], Any]
    rebuild: Callable[[PyTree, PyTree], Any]

    def __post_init__(self):
        # of a strong type, as a state under lax.scan has to be
        object.__setattr__(self, "state", jax.tree.map(_array, self.state))

    @property
    def has_state(self) -> bool:
        """Whether there is a state."""
        return bool(jax.tree.leaves(self.state))

    def train_fn(self, state: PyTree = None) -> Callable[..., Any]:
        """The model in training mode, apply_fn(params, x, key) -> outputs, or (outputs, state) if it has a state.

        For objectives with `needs_key=True` and, if it has a state, `has_aux=True`, which return the states of all
        samples: see `average_state`.
        """
        state = self._checked("FunctionalModel.train_fn", state)

        def apply_fn(params: PyTree, x: Any, key: jax.Array) -> Any:
            self._check_params("FunctionalModel.train_fn", params)
            outputs, new = self.train(params, state, x, key)
            return (outputs, _like(state, new)) if self.has_state else outputs

        return apply_fn

    def eval_fn(self, state: PyTree = None) -> Callable[[PyTree, Any], Any]:
        """The model in evaluation mode, apply_fn(params, x) -> outputs, as `predict` takes it."""
        state = self._checked("FunctionalModel.eval_fn", state)

        def apply_fn(params: PyTree, x: Any) -> Any:
            self._check_params("FunctionalModel.eval_fn", params)
            return self.evaluate(params, state, x)

        return apply_fn

    def to_model(self, params: PyTree, state: PyTree = None) -> Any:
        """The framework's own model with these parameters, such as `mean(q)` or `sample(key, q)`, and this state.

        flax.nnx: a module in evaluation mode; equinox: a module in inference mode, or (module, state); linen: the
        variables; haiku and plain functions: the parameters, or (params, state).
        """
        self._check_params("FunctionalModel.to_model", params)
        return self.rebuild(params, self._checked("FunctionalModel.to_model", state))

    def reparameterise(self, params: PyTree, to_params: Callable[[PyTree], PyTree]) -> "FunctionalModel":
        """The same model as a function of other parameters, which have prior and posterior in the place of its own.

        Those may be the latent ones of a hierarchical prior (`priors.horseshoe`) or of a bounded parameter
        (`priors.constrained`), or low-rank changes to a network that stays as it is (LoRA: Hu et al. 2021,
        https://arxiv.org/abs/2106.09685).

        Args:
            params: the other parameters, floating-point arrays.
            to_params: from a tree like them to one like the model's `params`.

        What `to_params` closes over is a constant of what is compiled. Of a large network, pass its parameters to the
        step as an argument and call this within, as the page of frameworks shows.

        Raises:
            ValueError: if `to_params(params)` has another structure, other shapes or other dtypes than the model's
                parameters; if `params` are not floating-point arrays, or have a posterior already.
            TypeError: if `to_params` is not a function.

        >>> model = from_functions(lambda w, x, key: x @ w, lambda w, x: x @ w, jnp.ones((3, 2)))
        >>> scaled = model.reparameterise({"log_scale": jnp.zeros(2)}, lambda p: model.params * jnp.exp(p["log_scale"]))
        >>> scaled.eval_fn()({"log_scale": jnp.log(jnp.array([1.0, 2.0]))}, jnp.ones((1, 3)))
        Array([[3., 6.]], dtype=float32)
        """
        caller = "FunctionalModel.reparameterise"
        check_callable(caller, "to_params", to_params)
        check_floating(caller, "params", params)
        remedy = "Return a tree like the model's attribute `params`, in its dtypes: changed.astype(w.dtype)."
        check_like(f"{caller}: to_params(params)", self.params, jax.eval_shape(to_params, params), remedy, dtypes=True)
        return FunctionalModel(
            params,
            self.state,
            lambda params, state, x, key: self.train(to_params(params), state, x, key),
            lambda params, state, x: self.evaluate(to_params(params), state, x),
            lambda params, state: self.rebuild(to_params(params), state),
        )

    def loss(self, objective: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """The loss of a training step, in training mode.

        Args:
            objective: `elbo_loss` or another objective.
            **options: for it, such as num_samples, num_data and prior. With `has_aux=True` the model returns (outputs,
                aux).

        Returns:
            Without a state, loss(q, x, y, key), which returns what the objective does, for `jax.value_and_grad`. With
            one, loss(q, state, x, y, key) -> (value, new_state), for `jax.value_and_grad(has_aux=True)`; with
            `return_terms` or `has_aux` it is (value, (new_state, terms)), (value, (new_state, aux)) or (value,
            (new_state, terms, aux)). Each statistic is updated once a step, to the mean of what it is after each of the
            Monte Carlo samples, in its own dtype. Both take options that change from step to step, as keywords.

        Raises:
            TypeError: for an option that the objective does not take; when called without the state that there is.
            ValueError: for a model with state under a coupling other than "shared", or one whose state does not keep
                its structure and shapes.
        """
        check_callable("FunctionalModel.loss", "objective", objective)
        fixed = getattr(objective, "keywords", {})  # of a functools.partial
        check_options(objective, options)
        has_aux = self.has_state and options.pop("has_aux", fixed.get("has_aux", False))

        def loss(q: PyTree, x: Any, y: Any, key: jax.Array, *others: Any, **more: Any) -> Any:
            if others:
                raise TypeError(
                    "FunctionalModel.loss: the model has no state, so its loss takes four arguments, "
                    f"loss(q, x, y, key), and gives a value, got {4 + len(others)}."
                )
            check_options(objective, more)
            return objective(self.train_fn(), q, x, y, key, needs_key=True, **{**options, **more})

        def loss_and_state(q: PyTree, state: PyTree, x: Any, y: Any, key: jax.Array | None = None, **more: Any) -> Any:
            if key is None:
                raise TypeError(
                    "FunctionalModel.loss: the model has a state, so its loss takes five arguments, "
                    "loss(q, state, x, y, key), and gives (value, new_state): differentiate it with "
                    "jax.value_and_grad(loss, has_aux=True). The first state is the model's attribute `state`."
                )
            check_options(objective, more)
            self._refuse_coupling({**fixed, **options, **more})
            train = self.train_fn(state)

            def apply_fn(params: PyTree, x: Any, key: jax.Array) -> tuple[Any, _Carried]:
                outputs, new = train(params, x, key)
                outputs, aux = split_aux("FunctionalModel.loss", "the model", outputs, has_aux=has_aux)
                return outputs, _Carried(new, aux)

            result = objective(apply_fn, q, x, y, key, needs_key=True, has_aux=True, **{**options, **more})
            value, extra = split_aux("FunctionalModel.loss", "the objective", result, has_aux=True)
            *terms, carried = (extra,) if isinstance(extra, _Carried) else extra
            extras = [average_state(carried.state), *terms, *[carried.aux] * has_aux]
            return value, tuple(extras) if len(extras) > 1 else extras[0]

        return loss_and_state if self.has_state else loss

    def _refuse_coupling(self, options: dict[str, Any]) -> None:
        if (coupling := options.get("coupling", "shared")) != "shared":
            path, _ = leaves_with_path(self.state)[0]
            raise ValueError(
                f'FunctionalModel.loss: coupling="{coupling}" sees one example at a time, and the model has a state of '
                f'the whole batch (state{path}). Pass coupling="shared", or take a model without batch statistics, '
                "such as one with layer or group normalisation."
            )

    def _check_params(self, caller: str, params: PyTree) -> None:
        remedy = (
            "Pass what is like the model's attribute `params`: a posterior of these to an objective and to predict; "
            "to_model takes illia_fn.mean(q), or one draw, illia_fn.sample(key, q)."
        )
        check_like(f"{caller}: params", self.params, params, remedy)

    def _checked(self, caller: str, state: PyTree) -> PyTree:
        if not self.has_state and not jax.tree.leaves(state):
            return self.state
        if state is None:
            path, _ = leaves_with_path(self.state)[0]
            raise ValueError(
                f"{caller}: the model has a state (state{path}), and none was given. Pass the one that training "
                "returned last, or that of the untrained model, its attribute `state`."
            )
        check_like(f"{caller}: state", self.state, state, "Pass what the loss returned, or the attribute `state`.")
        return state


def _array(leaf: Any) -> jax.Array:
    return leaf if _is_key(leaf) else jnp.asarray(leaf, jnp.result_type(leaf))


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _like(state: PyTree, new: PyTree) -> PyTree:
    """The new state in the dtypes of the old one."""
    remedy = "Leave out of the state what grows from call to call, such as what linen's sow keeps."
    check_like("FunctionalModel.train_fn: the state that the model returns", state, new, remedy)
    return jax.tree.map(lambda like, leaf: leaf if _is_key(leaf) else jnp.asarray(leaf, like.dtype), state, new)


def from_functions(
    train: Callable[..., Any], evaluate: Callable[..., Any], params: PyTree, state: PyTree = None
) -> FunctionalModel:
    """A model of plain functions, for training and for evaluation.

    Args:
        train: (params, x, key) -> outputs; with a state (params, state, x, key) -> (outputs, state).
        evaluate: (params, x) -> outputs; with a state (params, state, x) -> outputs.
        params: the parameters, floating-point arrays.
        state: batch statistics and the like, or None.

    Raises:
        ValueError: for parameters that are no floating-point arrays.

    >>> def train(params, state, x, key):
    ...     keep = jax.random.bernoulli(key, 0.9, x.shape)
    ...     return (keep * x - state) @ params, 0.9 * state + 0.1 * x.mean(0)
    >>> model = from_functions(train, lambda params, state, x: (x - state) @ params, jnp.ones((3, 2)), jnp.zeros(3))
    >>> model.eval_fn(model.state)(model.params, jnp.ones((1, 3)))
    Array([[3., 3.]], dtype=float32)
    """
    check_callable("from_functions", "train", train)
    check_callable("from_functions", "evaluate", evaluate)
    check_floating("from_functions", "params", params)
    if jax.tree.leaves(state):
        return FunctionalModel(params, state, train, evaluate, lambda params, state: (params, state))
    return FunctionalModel(
        params,
        (),
        lambda params, _, x, key: (train(params, x, key), ()),
        lambda params, _, x: evaluate(params, x),
        lambda params, _: params,
    )
