"""w ~ q: the draws that an objective is estimated from, and how its gradient goes through them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from illia_fn._base.checks import check_draws
from illia_fn._base.trees import PyTree
from illia_fn.coupling import Coupling
from illia_fn.coupling._transform import check_coupling, coupled_expectation
from illia_fn.engine._accumulate import sum_over_chunks
from illia_fn.engine._randomness import check_fresh_noise
from illia_fn.engine.chunks import ChunkSize, chosen
from illia_fn.engine.estimators import Estimator, advantages, check_estimator, with_gradient_of
from illia_fn.engine.monte_carlo import draws
from illia_fn.objectives._data import DataTerm
from illia_fn.posteriors._join import Joined
from illia_fn.posteriors.posterior import check_nodes, is_posterior, log_prob

Draw = list[PyTree]  # one array, or subtree, for each node of `Draws.joined`
OfDraw = Callable[..., tuple[PyTree, PyTree]]  # (w, and a key if apply_fn takes one) -> (value, aux)


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """Networks w_s ~ q, s = 1, ..., S: the data term at each of them, means over them, and functions of all of them.

    A draw w comes as a list of arrays, in which small leaves are joined into one, so that a tree of many leaves runs as
    fast as one of few; `params_at` makes the tree of it.

    Attributes:
        data: the data term.
        params, key, num_samples, estimator, coupling, chunk_size, antithetic: as in `elbo_loss`.
        joined: q with its small nodes joined, in float32 or wider.
        keys: for the draws, and for a KL that is sampled.

    >>> from illia_fn import mean_field
    >>> data = DataTerm("my_loss", lambda w, x: x * w, jnp.ones(2), jnp.array([0.0, 1.0]))
    >>> nll, _ = Draws(data, mean_field(jnp.ones(()), scale=1e-6), jax.random.key(0), 4).mean_nll()
    >>> print(nll.round(4))  # 1 / 4 + log(2 pi) / 2
    1.1689
    """

    data: DataTerm
    params: PyTree
    key: jax.Array
    num_samples: int = 1
    _: dataclasses.KW_ONLY
    estimator: Estimator = "reparameterised"
    coupling: Coupling = "shared"
    chunk_size: ChunkSize = "auto"
    antithetic: bool = False
    joined: Joined = dataclasses.field(init=False)
    keys: tuple[jax.Array, jax.Array] = dataclasses.field(init=False)

    def __post_init__(self):
        caller = self.caller
        if not jax.tree.leaves(self.params):
            raise ValueError(
                f"{caller}: params has no leaves, got {self.params!r}. Pass a posterior tree, such as mean_field makes."
            )
        check_nodes(caller, self.params)
        given = 1 if self.chunk_size == "auto" else self.chunk_size
        check_draws(caller, self.key, self.num_samples, given, self.antithetic)
        check_estimator(caller, self.estimator, self.num_samples, antithetic=self.antithetic)
        check_coupling(caller, self.coupling)
        if self.coupling != "shared":
            self._check_coupled()
        else:
            apply_key = self.key if self.data.needs_key else None
            check_fresh_noise(caller, self.data.apply_fn, self.params, self.data.x, apply_key)
        # log q at a draw that is rounded to half precision would not be that of q
        wide = jax.tree.map(_widened, self.params, is_leaf=is_posterior)
        object.__setattr__(self, "joined", Joined.of(wide, is_posterior))
        object.__setattr__(self, "keys", tuple(jax.random.split(self.key)))

    @property
    def caller(self) -> str:
        """The public function that errors name."""
        return self.data.caller

    def _check_coupled(self) -> None:
        """What needs one network for the whole batch is refused."""
        if self.estimator != "reparameterised":
            raise ValueError(
                f'{self.caller}: estimator="{self.estimator}" needs the w of every draw, and a coupling has none for '
                'the whole batch. Drop the estimator, or pass coupling="shared".'
            )
        if self.data.has_aux:
            raise ValueError(
                f'{self.caller}: has_aux=True needs coupling="shared", got "{self.coupling}": what apply_fn returns '
                "beside the outputs, such as batch statistics, is of the whole batch, and other couplings see one "
                "example at a time."
            )

    # --- one draw ---------------------------------------------------------------------------------------------------

    def params_at(self, w: Draw) -> PyTree:
        """The parameters of the network, as apply_fn takes them."""
        return jax.tree.map(_rounded_like, self.params, self.joined.tree(w), is_leaf=is_posterior)

    def losses(self, w: Draw, *apply_key: jax.Array) -> tuple[jax.Array, PyTree]:
        """The loss of each example under one network, (B,), and aux."""
        return self.data.losses(self.params_at(w), *apply_key)

    def nll(self, w: Draw, *apply_key: jax.Array) -> tuple[jax.Array, PyTree]:
        """The mean loss of one network, and aux."""
        losses, aux = self.losses(w, *apply_key)
        return self.data.mean(losses), aux

    def log_q(self, w: Draw, *, of_draw_alone: bool | None = None) -> jax.Array:
        """log q(w) in nats, a scalar; with a gradient through the draw alone, it is that of a fixed q.

        That leaves out the score, the gradient of log q at a fixed draw, whose expectation is zero in a mean over the
        draws, E_q[log q]. In any other function of log q something must take its place, as in
        Tucker et al. 2019, https://arxiv.org/abs/1810.04152. So which of the two is meant must be told if the estimator
        is "doubly_reparameterised".
        """
        if of_draw_alone is None and self.estimator == "doubly_reparameterised":
            raise ValueError(
                f'{self.caller}: estimator="doubly_reparameterised" leaves the score of q out, whose expectation is '
                "zero in a mean of log q alone. For a mean, pass log_q(w, of_draw_alone=True), also to log_ratio(w, "
                'log_q); for any other function of log q take estimator="reparameterised".'
            )
        nodes = self.joined.nodes
        return log_prob(jax.lax.stop_gradient(nodes) if of_draw_alone else nodes, w)

    # --- all of them ------------------------------------------------------------------------------------------------

    def sum(
        self,
        f: OfDraw,
        *per_draw: jax.Array,
        takes_key: bool = False,
        constant: bool = False,
        holds_draws: bool = False,
    ) -> Any:
        """The sum of the values, and all aux, of f(w, a key if it takes one, its rows of `per_draw`) -> (value, aux).

        Every call sees the same draws, and the gradient goes through them. With `constant`, the results have no first
        derivative. For "score_function" there must be none along the draws: `reduce` sees to it, or f, which then
        `holds_draws`.
        """
        if self.estimator == "score_function" and not (constant or holds_draws):
            raise ValueError(
                f'{self.caller}: Draws.sum differentiates along the draws, and estimator="score_function" is for what '
                "has no derivative there. Call Draws.reduce(f, jnp.mean), or Draws.mean_nll()."
            )
        count = self.num_samples // 2 if self.antithetic else self.num_samples
        chunk_size = chosen(self.chunk_size, count, self.params, self.data.x)
        chunk_sum, chunks = draws(
            self.caller,
            f,
            self.joined.nodes,
            jax.random.clone(self.keys[0]),
            self.num_samples,
            chunk_size=chunk_size,
            antithetic=self.antithetic,
            needs_key=takes_key and self.data.needs_key,
            per_draw=per_draw,
        )
        return sum_over_chunks(chunk_sum, chunks, chunk_size, constant=constant)

    def mean_nll(self) -> tuple[jax.Array, PyTree]:
        """E_q[mean_i -log p(y_i | f(x_i, w))], with the gradient of the estimator, and all aux."""
        nll, _, aux = self.mean(lambda losses: (self.data.mean(losses), ()))
        return nll, aux

    def mean(self, f: Callable[[jax.Array], tuple[jax.Array, PyTree]]) -> tuple[jax.Array, PyTree, PyTree]:
        """E_q[value] of f(losses) -> (value, extra), with the gradient of the estimator; all extra and aux."""

        def at_draw(w: Draw, *apply_key: jax.Array) -> tuple[jax.Array, PyTree]:
            losses, aux = self.losses(w, *apply_key)
            value, extra = f(losses)
            return value, (extra, aux)

        if self.coupling != "shared":
            return *self._coupled_mean(f), ()
        if self.estimator == "score_function":
            mean, (extra, aux) = self.reduce(at_draw, jnp.mean)
        else:
            total, (extra, aux) = self.sum(at_draw, takes_key=True)
            mean = total / self.num_samples
        return mean, extra, aux

    def _coupled_mean(self, f: Callable[[jax.Array], tuple[jax.Array, PyTree]]) -> tuple[jax.Array, PyTree]:
        def of_outputs(outputs: PyTree) -> tuple[jax.Array, PyTree]:
            losses = self.data.losses_of_outputs(outputs)
            if losses.ndim == 0:
                raise ValueError(
                    f'{self.caller}: coupling="{self.coupling}" needs a loss_fn with one value per example, but it '
                    "returned a scalar, which may depend on examples together. Drop its mean."
                )
            return f(losses)

        return coupled_expectation(
            self.caller,
            of_outputs,
            self.data.apply_fn,
            self.params,
            self.data.x,
            self.keys[0],
            self.num_samples,
            coupling=self.coupling,
            chunk_size=self.chunk_size,
            antithetic=self.antithetic,
            needs_key=self.data.needs_key,
        )

    def reduce(self, f: OfDraw, reduction: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, PyTree]:
        """reduction(values of all draws, (S, ...)) of f(w, ...) -> (value, aux), and all aux.

        The memory is that of one draw: a first pass takes the values, and a second one their gradients, with the
        coefficients that the reduction gives them. The gradient is through the draws, or, for "score_function", through
        log q, with leave-one-out control variates.
        """
        by_score = self.estimator == "score_function"

        def values_at(w: Draw, *apply_key: jax.Array) -> tuple[tuple[()], jax.Array]:
            return (), f(w, *apply_key)[0]

        def slope_at(w: Draw, *inputs: jax.Array) -> tuple[jax.Array, PyTree]:
            *apply_key, coefficients, advantage = inputs
            w = jax.lax.stop_gradient(w) if by_score else w
            values, aux = f(w, *apply_key)
            slope = jnp.sum(coefficients * values)
            return slope + advantage * self.log_q(w).astype(slope.dtype) if by_score else slope, aux

        _, values = self.sum(values_at, takes_key=True, constant=True)
        advantage = advantages(reduction, values) if by_score else jnp.zeros(len(values))
        slope, aux = self.sum(slope_at, jax.grad(reduction)(values), advantage, takes_key=True, holds_draws=by_score)
        once = self.once if by_score else None
        return with_gradient_of(reduction(values), slope, once), aux

    @property
    def once(self) -> str:
        """Why this estimator is to be differentiated once only."""
        return (
            f'{self.caller}: estimator="{self.estimator}" has first derivatives only, and this asks for a second one. '
            'Take estimator="reparameterised".'
        )


def _widened(leaf: Any) -> Any:
    """A posterior node in float32 or wider; other leaves stay."""
    return leaf.widened() if is_posterior(leaf) else leaf


def _rounded_like(leaf: Any, w: Any) -> Any:
    return jax.tree.map(lambda like, x: x.astype(like.dtype), leaf.like, w) if is_posterior(leaf) else w
