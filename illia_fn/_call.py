"""A call of an objective: the arguments that all of them take, checked, and what all of them make of these."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._batch import LossFn, check_weights, example_losses, weighted_mean
from illia_fn._checks import check_callable, check_draws, check_factor, check_num_data, check_temperature, split_aux
from illia_fn._estimators import Estimator, check_estimator, score_function, with_gradient_of
from illia_fn._join import Joined
from illia_fn._numerics import at_least_float32, total
from illia_fn._trees import PyTree, broadcast_prefix
from illia_fn.expectation import expectation
from illia_fn.kl import Pair, kl_pairs, log_prior, total_kl
from illia_fn.posteriors import is_posterior, log_prob, num_params
from illia_fn.priors import Normal

PerDraw = Callable[..., tuple[Any, Any]]  # (w, *apply_key) -> (value, aux)


class DataOptions(TypedDict, total=False):
    """Keyword arguments of every objective, as `elbo_loss` describes them."""

    loss_fn: LossFn | None
    prior: PyTree
    num_data: int | None
    weights: ArrayLike | None
    estimator: Estimator
    chunk_size: int | None
    antithetic: bool
    needs_key: bool
    has_aux: bool


class Options(DataOptions, total=False):
    """Those of the objectives that temper their KL."""

    kl_weight: ArrayLike | None
    temperature: ArrayLike


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """The arguments of an objective; a field is None or at its default where the objective does not take it."""

    caller: str
    apply_fn: Callable[..., Any]
    params: PyTree
    x: Any
    y: Any
    key: jax.Array
    num_samples: int
    loss_fn: LossFn | None = None
    prior: PyTree = dataclasses.field(default=Normal(0.0, 0.1))
    num_data: int | None = None
    kl_weight: ArrayLike | None = None
    temperature: ArrayLike = 1.0
    free_nats: PyTree | None = None
    weights: ArrayLike | None = None
    estimator: Estimator = "reparameterised"
    chunk_size: int | None = 1
    antithetic: bool = False
    needs_key: bool = False
    has_aux: bool = False
    return_terms: bool = False
    return_log_weights: bool = False
    pairs: list[Pair] = dataclasses.field(init=False)
    joined: Joined = dataclasses.field(init=False)
    draw_key: jax.Array = dataclasses.field(init=False)

    def __post_init__(self):
        check_callable(self.caller, "apply_fn", self.apply_fn)
        if self.loss_fn is not None:
            check_callable(self.caller, "loss_fn", self.loss_fn)
        if not jax.tree.leaves(self.params):
            raise ValueError(
                f"{self.caller}: params has no leaves, got {self.params!r}. Pass a posterior tree, such as mean_field "
                "makes."
            )
        check_num_data(self.caller, self.num_data)
        if self.kl_weight is not None:
            check_factor(self.caller, "kl_weight", self.kl_weight)
        check_temperature(self.caller, self.temperature)
        check_weights(self.caller, self.weights)
        check_draws(self.caller, self.key, self.num_samples, self.chunk_size, self.antithetic)
        check_estimator(self.caller, self.estimator, self.num_samples, antithetic=self.antithetic)
        if self.free_nats is not None and self.estimator == "doubly_reparameterised":
            raise ValueError(
                f'{self.caller}: free_nats need the exact gradient of the KL. Drop estimator="doubly_reparameterised".'
            )
        draw_key, kl_key = jax.random.split(self.key)
        pairs = kl_pairs(self.caller, self.params, self.prior, kl_key)
        for name, value in {
            "draw_key": draw_key,
            "pairs": pairs,
            "joined": Joined.of(self.params, is_posterior),
        }.items():
            object.__setattr__(self, name, value)

    # --- the data ---------------------------------------------------------------------------------------------------

    def losses(self, w: list[jax.Array], *apply_key: jax.Array) -> tuple[jax.Array, Any]:
        """The loss of each example, (B,), or the scalar that loss_fn returns; and aux."""
        outputs = self.apply_fn(self.joined.tree(w), self.x, *apply_key)
        outputs, aux = split_aux(self.caller, "apply_fn", outputs, has_aux=self.has_aux)
        return example_losses(self.caller, self.loss_fn, outputs, self.y, self.weights), aux

    def mean_loss(self, w: list[jax.Array], *apply_key: jax.Array) -> tuple[jax.Array, Any]:
        """The (weighted) mean of the losses of the examples, and aux."""
        losses, aux = self.losses(w, *apply_key)
        return weighted_mean(losses, self.weights), aux

    # --- draws ------------------------------------------------------------------------------------------------------

    def expectation(self, f: Callable[..., Any], *, needs_key: bool = False, has_aux: bool = False) -> Any:
        """E_q[f(w)], always at the same draws."""
        draws = {"chunk_size": self.chunk_size, "antithetic": self.antithetic}
        nodes = self.joined.nodes
        return expectation(f, nodes, self.draw_key, self.num_samples, needs_key=needs_key, has_aux=has_aux, **draws)

    def at_draws(self, f: PerDraw) -> tuple[PyTree, PyTree]:
        """Value and aux of f at every draw, stacked."""

        def at_draw(w: list[jax.Array], *apply_key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            return jnp.zeros(()), f(w, *apply_key)

        return self.expectation(at_draw, needs_key=self.needs_key, has_aux=True)[1]

    def mean(self, f: PerDraw) -> tuple[jax.Array, Any]:
        """E_q[f(w)] with the gradient of the estimator, and aux."""
        if self.estimator == "score_function":
            return self.reduced(f, jnp.mean)
        return self.expectation(f, needs_key=self.needs_key, has_aux=True)

    def reduced(self, f: PerDraw, reduce: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, Any]:
        """reduce(f at all draws) with the gradient of the estimator, and aux."""
        if self.estimator != "score_function":
            values, aux = self.at_draws(f)
            return reduce(values), aux

        def held(w: list[jax.Array], *apply_key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
            w = jax.lax.stop_gradient(w)
            value, aux = f(w, *apply_key)
            return (value, log_prob(self.joined.nodes, w)), aux

        (values, log_q), aux = self.at_draws(held)
        return score_function(reduce, values, log_q), aux

    # --- the regulariser --------------------------------------------------------------------------------------------

    def kl(self) -> jax.Array:
        """KL(q || prior), tempered and with its free nats; exact, with the gradient of the estimator."""
        kl = total_kl(self.joined, self.pairs, self.num_samples) if self.free_nats is None else self._kl_beyond_free()
        if self._is_tempered:
            entropy = total([node.entropy() for node in self.joined.nodes])
            kl = kl + (1.0 - at_least_float32(self.temperature)).astype(kl.dtype) * entropy.astype(kl.dtype)
        if self.estimator != "doubly_reparameterised":
            return kl
        held = jax.lax.stop_gradient(self.joined.nodes)
        path = self.expectation(lambda w: -self.log_ratio(w, log_prob(held, w)))
        return with_gradient_of(kl, path.astype(kl.dtype))

    def _kl_beyond_free(self) -> jax.Array:
        """sum_l max(KL_l, free_nats_l) over the leaves l; None is no free nats."""
        prefix = self.caller, "free_nats", self.free_nats
        free = broadcast_prefix(*prefix, self.params, is_posterior, lambda node: node is None)
        leaves = jax.tree.leaves(self.params, is_leaf=is_posterior)
        terms, pairs = [], iter(self.pairs)
        for leaf, nats in zip(leaves, free, strict=True):
            if is_posterior(leaf):
                nats = 0.0 if nats is None else nats
                check_factor(self.caller, "free_nats", nats)
                kl = jnp.sum(next(pairs).kl(self.num_samples))
                terms.append(jnp.maximum(kl, jnp.asarray(nats, kl.dtype)))
        return total(terms)

    @property
    def _is_tempered(self) -> bool:
        return not (isinstance(self.temperature, (int, float)) and self.temperature == 1.0)

    def log_ratio(self, w: list[jax.Array], log_q: jax.Array) -> jax.Array:
        """log p(w) - temperature log q(w), at one draw."""
        if self._is_tempered:
            log_q = at_least_float32(self.temperature).astype(log_q.dtype) * log_q
        return log_prior(self.joined, self.pairs, w) - log_q

    def weight_of_kl(self, dtype: Any) -> jax.Array:
        """kl_weight / num_data, or the convention of illia."""
        if self.num_data is not None:
            weight = 1.0 if self.kl_weight is None else self.kl_weight
            return jnp.asarray(weight, dtype) / jnp.asarray(self.num_data, dtype)
        count = num_params(self.params)
        if count == 0:
            raise ValueError(
                f"{self.caller}: params has no posterior node, so there is no KL per variational parameter. Make some "
                "leaves Bayesian with mean_field, or pass num_data: the loss of a deterministic tree is then its mean "
                "NLL."
            )
        return jnp.asarray(1e-3 if self.kl_weight is None else self.kl_weight, dtype) / jnp.asarray(count, dtype)

    def require_num_data(self, why: str) -> int:
        """The size of the training set, for objectives without another convention."""
        if self.num_data is None:
            raise ValueError(f"{self.caller}: num_data is required: {why}.")
        return self.num_data


def check_options(caller: str, options: dict[str, Any], allowed: type) -> None:
    """Every keyword is one that the objective takes."""
    names = tuple(allowed.__annotations__)
    unknown = [name for name in options if name not in names]
    if unknown:
        raise TypeError(f"{caller}: unknown option {', '.join(unknown)}. The options are {', '.join(names)}.")


def with_extras(loss: jax.Array, *extras: Any) -> Any:
    """The loss alone, (loss, extra) or (loss, (extra, extra)): what `jax.value_and_grad(has_aux=True)` takes."""
    return loss if not extras else (loss, extras[0] if len(extras) == 1 else extras)
