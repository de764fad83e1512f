"""kl_weight * KL(q || prior) / N, and the log density ratio of one draw that it is the mean of."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from illia_fn._base.checks import check_factor, check_num_data, check_temperature, concrete
from illia_fn._base.numerics import at_least_float32, gradient_after_value, total
from illia_fn._base.trees import PyTree, broadcast_prefix
from illia_fn.engine.estimators import with_gradient_of
from illia_fn.kl.loss import Pair, hyperpriors, kl_pairs, log_prior, total_kl
from illia_fn.objectives._draws import Draw, Draws
from illia_fn.posteriors.posterior import is_posterior, num_params
from illia_fn.priors.normal import Normal


@dataclasses.dataclass(frozen=True, eq=False)
class Regulariser:
    """What keeps q near the prior: KL(q || prior), exact where it can be, and its weight against the data.

    Attributes:
        draws: the draws of q.
        prior, num_data, kl_weight, temperature, free_nats: as in `elbo_loss`.
        pairs: each posterior node with its prior.

    >>> from illia_fn import mean_field
    >>> from illia_fn.objectives import DataTerm
    >>> data = DataTerm("my_loss", lambda w, x: x * w, jnp.ones(2), jnp.array([0.0, 1.0]))
    >>> draws = Draws(data, mean_field(jnp.ones(()), scale=1.0), jax.random.key(0))
    >>> print(Regulariser(draws, prior=Normal(0.0, 1.0), num_data=100).kl())  # (1 - 0)^2 / 2
    0.5
    """

    draws: Draws
    _: dataclasses.KW_ONLY
    prior: PyTree = dataclasses.field(default=Normal(0.0, 1.0))
    num_data: int | None = None
    kl_weight: ArrayLike | None = None
    temperature: ArrayLike = 1.0
    free_nats: PyTree | None = None
    pairs: list[Pair] = dataclasses.field(init=False)

    def __post_init__(self):
        check_num_data(self.caller, self.num_data)
        if self.kl_weight is not None:
            check_factor(self.caller, "kl_weight", self.kl_weight)
        check_temperature(self.caller, self.temperature)
        if self.free_nats is not None and self.draws.estimator == "doubly_reparameterised":
            raise ValueError(
                f'{self.caller}: free_nats need the exact gradient of the KL. Drop estimator="doubly_reparameterised".'
            )
        pairs = kl_pairs(self.caller, self.draws.params, self.prior, self.draws.keys[1])
        object.__setattr__(self, "pairs", pairs)
        if self.free_nats is not None:
            self.refuse_fitted("with free_nats the scales that it fits are not the best ones")

    @property
    def caller(self) -> str:
        """The public function that errors name."""
        return self.draws.caller

    def kl(self) -> jax.Array:
        """KL(q || prior) in nats, tempered and with its free nats; exact, with the gradient of the estimator."""
        draws = self.draws
        if self.free_nats is not None:
            return self._kl_beyond_free()
        kl = self._tempered(total_kl(draws.joined, self.pairs, draws.num_samples), self._entropy)
        if draws.estimator != "doubly_reparameterised":
            return kl
        path, _ = draws.sum(lambda w: (-self.log_ratio(w, draws.log_q(w, of_draw_alone=True)), ()))
        kl = with_gradient_of(kl, (path / draws.num_samples).astype(kl.dtype), draws.once)
        return gradient_after_value(kl, draws.params)

    def hyperprior(self) -> jax.Array | None:
        """-log of the hyperpriors of the priors that were fitted to q, in nats; None if none was."""
        terms = hyperpriors(self.pairs)
        return total(terms) if terms else None

    def refuse_fitted(self, why: str) -> None:
        """For objectives whose prior must not depend on q."""
        if hyperpriors(self.pairs):
            raise ValueError(
                f"{self.caller}: priors.EmpiricalBayes is fitted to q, and {why}. Take a fixed prior, or learn a scale "
                "along with q: illia_fn.Normal(0.0, jnp.exp(log_scale))."
            )

    def _entropy(self) -> jax.Array:
        joined, count = self.draws.joined, self.draws.num_samples
        terms = [
            gradient_after_value(node.entropy() if node.has_entropy else self.pairs[group[0]].entropy(count), node)
            for node, group in zip(joined.nodes, joined.groups, strict=True)
        ]
        return total(terms)

    def _tempered(self, kl: jax.Array, entropy: Callable[[], jax.Array]) -> jax.Array:
        """KL + (1 - T) H."""
        if not self._is_tempered:
            return kl
        return kl + (1.0 - at_least_float32(self.temperature)).astype(kl.dtype) * entropy().astype(kl.dtype)

    def _kl_beyond_free(self) -> jax.Array:
        """sum_l max(KL_l, free_nats_l) over the nodes l, each tempered; None is no free nats."""
        params = self.draws.params
        prefix = self.caller, "free_nats", self.free_nats
        free = broadcast_prefix(*prefix, params, is_posterior, lambda node: node is None)
        nodes = [(leaf, nats) for leaf, nats in zip(_leaves(params), free, strict=True) if is_posterior(leaf)]
        terms, count = [], self.draws.num_samples
        for pair, (_, nats) in zip(self.pairs, nodes, strict=True):
            nats = 0.0 if nats is None else nats
            check_factor(self.caller, "free_nats", nats)
            kl = self._tempered(pair.kl(count), partial(pair.entropy, count))
            terms.append(jnp.maximum(kl, jnp.asarray(nats, kl.dtype)))
        return total(terms)

    @property
    def _is_tempered(self) -> bool:
        return not (isinstance(self.temperature, (int, float)) and self.temperature == 1.0)

    def log_ratio(self, w: Draw, log_q: jax.Array | None = None) -> jax.Array:
        """log p(w) - temperature log q(w) of one draw, in nats; its mean is -KL(q || prior).

        `log_q` is `draws.log_q(w)`, unless it is given: a gradient that leaves out a part of its own says which.
        """
        log_q = self.draws.log_q(w) if log_q is None else log_q
        if self._is_tempered:
            log_q = at_least_float32(self.temperature).astype(log_q.dtype) * log_q
        return log_prior(self.draws.joined, self.pairs, w) - log_q

    def weight(self, dtype: Any) -> jax.Array:
        """kl_weight / num_data; without num_data, kl_weight per variational parameter, the convention of illia."""
        count, weight = num_params(self.draws.params), self.kl_weight
        if count == 0 and not (isinstance(weight, (int, float)) and weight == 0):
            raise ValueError(
                f"{self.caller}: params has no posterior node, so there is no KL. Make some leaves Bayesian with "
                "mean_field; or pass kl_weight=0.0 to say that there is none: the loss is then the mean NLL of a "
                "deterministic network."
            )
        if self.num_data is not None:
            self._check_batch(self.num_data)
            return jnp.asarray(1.0 if weight is None else weight, dtype) / jnp.asarray(self.num_data, dtype)
        return jnp.asarray(1e-3 if weight is None else weight, dtype) / jnp.asarray(max(count, 1), dtype)

    def require_num_data(self, why: str) -> int:
        """The size of the training set, for objectives without another convention."""
        if self.num_data is None:
            raise ValueError(f"{self.caller}: num_data is required: {why}. Pass num_data=len(x_train).")
        self._check_batch(self.num_data)
        return self.num_data

    def require_exact(self) -> None:
        """Every KL has a closed form."""
        if not all(pair.is_exact for pair in self.pairs):
            raise ValueError(
                f"{self.caller}: KL(q || prior) must have a closed form. Take illia_fn.Normal or a posterior tree."
            )

    def _check_batch(self, num_data: Any) -> None:
        """A batch is not larger than the training set, unless it is padded."""
        count, size = concrete(num_data), self.draws.data.batch_size
        if self.draws.data.weights is None and count is not None and isinstance(size, int) and count < size:
            raise ValueError(
                f"{self.caller}: num_data must be the size of the training set, got {num_data} for a batch of {size}. "
                "If the batch is padded, pass weights."
            )


def _leaves(tree: PyTree) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=is_posterior)
