"""A call of an objective: the arguments that all of them take, checked, and what all of them make of these."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.checks import (
    check_callable,
    check_draws,
    check_factor,
    check_num_data,
    check_temperature,
    concrete,
    describe,
    split_aux,
)
from illia_fn._base.numerics import at_least_float32, total
from illia_fn._base.trees import PyTree, broadcast_prefix
from illia_fn.coupling import ChunkSize, Coupling
from illia_fn.coupling._transform import check_coupling, coupled_expectation
from illia_fn.engine._accumulate import sum_over_chunks
from illia_fn.engine.estimators import Estimator, advantages, check_estimator, with_gradient_of
from illia_fn.engine.monte_carlo import draws
from illia_fn.kl.table import Pair, kl_pairs, log_prior, total_kl
from illia_fn.objectives._data import LossFn, check_weights, example_losses, weighted_mean
from illia_fn.posteriors._join import Joined
from illia_fn.posteriors.posterior import is_posterior, log_prob, num_params
from illia_fn.priors.normal import Normal

OfLosses = Callable[[jax.Array], tuple[jax.Array, PyTree]]  # losses of the examples -> (value, extra)


class DataOptions(TypedDict, total=False):
    """Keyword arguments of every objective, as `elbo_loss` describes them."""

    loss_fn: LossFn | None
    prior: PyTree
    num_data: int | None
    weights: ArrayLike | None
    estimator: Estimator
    coupling: Coupling
    chunk_size: ChunkSize
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
    coupling: Coupling = "shared"
    chunk_size: ChunkSize = "auto"
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
        chunk_size = 1 if self.chunk_size == "auto" else self.chunk_size
        check_draws(self.caller, self.key, self.num_samples, chunk_size, self.antithetic)
        check_estimator(self.caller, self.estimator, self.num_samples, antithetic=self.antithetic)
        if self.free_nats is not None and self.estimator == "doubly_reparameterised":
            raise ValueError(
                f'{self.caller}: free_nats need the exact gradient of the KL. Drop estimator="doubly_reparameterised".'
            )
        check_coupling(self.caller, self.coupling)
        if self.coupling != "shared":
            self._check_coupled()
        draw_key, kl_key = jax.random.split(self.key)
        pairs = kl_pairs(self.caller, self.params, self.prior, kl_key)
        # log q at a draw that is rounded to half precision would not be that of q
        wide = jax.tree.map(_widened, self.params, is_leaf=is_posterior)
        for name, value in {
            "draw_key": draw_key,
            "pairs": pairs,
            "joined": Joined.of(wide, is_posterior),
        }.items():
            object.__setattr__(self, name, value)

    def _check_coupled(self) -> None:
        """What needs one network for the whole batch is refused."""
        if self.estimator != "reparameterised":
            raise ValueError(
                f'{self.caller}: estimator="{self.estimator}" needs the w of every draw, and a coupling has none for '
                'the whole batch. Drop the estimator, or pass coupling="shared".'
            )
        if self.has_aux:
            raise ValueError(
                f'{self.caller}: has_aux=True needs coupling="shared", got "{self.coupling}": what apply_fn returns '
                "beside the outputs, such as batch statistics, is of the whole batch, and other couplings see one "
                "example at a time."
            )

    # --- the data ---------------------------------------------------------------------------------------------------

    def losses(self, outputs: Any) -> jax.Array:
        """The loss of each example, (B,), or the scalar that loss_fn returns."""
        losses = example_losses(self.caller, self.loss_fn, outputs, self.y, self.weights)
        if losses.ndim == 0 and self.coupling != "shared":
            raise ValueError(
                f'{self.caller}: coupling="{self.coupling}" needs a loss_fn with one value per example, but it '
                "returned a scalar, which may depend on examples together. Drop its mean."
            )
        num_data = None if self.num_data is None else concrete(self.num_data)
        if num_data is not None and self.weights is None and losses.ndim and num_data < len(losses):
            raise ValueError(
                f"{self.caller}: num_data must be the size of the training set, got {num_data} for a batch of "
                f"{len(losses)}. If the batch is padded, pass weights."
            )
        return losses

    def losses_at(self, w: list[jax.Array], *apply_key: jax.Array) -> tuple[jax.Array, Any]:
        """The losses of one network, and aux."""
        w_like_params = jax.tree.map(_rounded_like, self.params, self.joined.tree(w), is_leaf=is_posterior)
        outputs = self.apply_fn(w_like_params, self.x, *apply_key)
        outputs, aux = split_aux(self.caller, "apply_fn", outputs, has_aux=self.has_aux)
        return self.losses(outputs), aux

    def mean_loss(self, losses: jax.Array) -> tuple[jax.Array, tuple[()]]:
        """The (weighted) mean of the losses of the examples, and nothing else."""
        return weighted_mean(losses, self.weights), ()

    # --- draws ------------------------------------------------------------------------------------------------------

    def sum(
        self, f: Callable[..., tuple[PyTree, PyTree]], *per_draw: jax.Array, needs_key: bool = False, held: bool = False
    ) -> tuple[PyTree, PyTree]:
        """Sum of the values and all aux of f(w, its rows of `per_draw`) -> (value, aux), always at the same draws."""
        chunk_size = 1 if self.chunk_size == "auto" else self.chunk_size
        chunk_sum, chunks = draws(
            self.caller,
            f,
            self.joined.nodes,
            self.draw_key,
            self.num_samples,
            chunk_size=chunk_size,
            antithetic=self.antithetic,
            needs_key=needs_key,
            per_draw=jax.lax.stop_gradient(per_draw),
        )
        return sum_over_chunks(chunk_sum, chunks, chunk_size, held=held)

    def mean(self, f: OfLosses) -> tuple[jax.Array, PyTree, PyTree]:
        """E_q[value] of f(losses) -> (value, extra), with the gradient of the estimator; extra and aux of all draws."""
        if self.estimator == "score_function":
            return self.reduced(f, jnp.mean)
        if self.coupling != "shared":
            return *self._coupled_mean(f), ()

        def at_draw(w: list[jax.Array], *apply_key: jax.Array) -> tuple[jax.Array, tuple[PyTree, PyTree]]:
            losses, aux = self.losses_at(w, *apply_key)
            value, extra = f(losses)
            return value, (extra, aux)

        total, (extra, aux) = self.sum(at_draw, needs_key=self.needs_key)
        return total / self.num_samples, extra, aux

    def _coupled_mean(self, f: OfLosses) -> tuple[jax.Array, PyTree]:
        return coupled_expectation(
            self.caller,
            lambda outputs: f(self.losses(outputs)),
            self.apply_fn,
            self.params,
            self.x,
            self.draw_key,
            self.num_samples,
            coupling=self.coupling,
            chunk_size=self.chunk_size,
            antithetic=self.antithetic,
            needs_key=self.needs_key,
        )

    def reduced(self, f: OfLosses, reduce: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, PyTree, PyTree]:
        """reduce(values of all draws) of f(losses) -> (value, extra), and the rest, as in `mean`.

        Two passes: the values of all draws, and then their gradients with the coefficients that reduce gives them,
        accumulated draw by draw.
        """
        by_score = self.estimator == "score_function"

        def values_at(w: list[jax.Array], *apply_key: jax.Array) -> tuple[tuple[()], tuple[jax.Array, PyTree]]:
            return (), f(self.losses_at(w, *apply_key)[0])

        def slope_at(w: list[jax.Array], *inputs: jax.Array) -> tuple[jax.Array, PyTree]:
            *apply_key, coefficients, advantage = inputs
            w = jax.lax.stop_gradient(w) if by_score else w
            losses, aux = self.losses_at(w, *apply_key)
            slope = jnp.sum(coefficients * f(losses)[0])
            return slope + advantage * log_prob(self.joined.nodes, w).astype(slope.dtype) if by_score else slope, aux

        _, (values, extra) = self.sum(values_at, needs_key=self.needs_key, held=True)
        advantage = advantages(reduce, values) if by_score else jnp.zeros(len(values))
        slope, aux = self.sum(slope_at, jax.grad(reduce)(values), advantage, needs_key=self.needs_key)
        return with_gradient_of(reduce(values), slope), extra, aux

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
        path, _ = self.sum(lambda w: (-self.log_ratio(w, log_prob(held, w)) / self.num_samples, ()))
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
            raise ValueError(f"{self.caller}: num_data is required: {why}. Pass num_data=len(x_train).")
        return self.num_data


def _widened(leaf: Any) -> Any:
    """A posterior node in float32 or wider; other leaves stay."""
    return jax.tree.map(at_least_float32, leaf) if is_posterior(leaf) else leaf


def _rounded_like(leaf: Any, w: Any) -> Any:
    return w.astype(leaf.mean.dtype) if is_posterior(leaf) else w


def check_options(caller: str, options: dict[str, Any], allowed: type) -> None:
    """Every keyword is one that the objective takes."""
    names = tuple(allowed.__annotations__)
    unknown = [name for name in options if name not in names]
    if unknown:
        raise TypeError(f"{caller}: unknown option {', '.join(unknown)}. The options are {', '.join(names)}.")


def require_shared(caller: str, coupling: Any, why: str) -> None:
    """For objectives that no coupling but one draw for the batch goes with."""
    if coupling != "shared":
        raise ValueError(
            f'{caller}: {why}, so only coupling="shared" goes with it, got {describe(coupling)}. Drop it, or use '
            "elbo_loss, whose data term is a mean over examples."
        )


def with_extras(loss: jax.Array, *extras: Any) -> Any:
    """The loss alone, (loss, extra) or (loss, (extra, extra)): what `jax.value_and_grad(has_aux=True)` takes."""
    return loss if not extras else (loss, extras[0] if len(extras) == 1 else extras)
