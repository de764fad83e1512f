"""-log p(y | f(x, w)): from a model and a batch to one loss for each example, and their mean."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from illia_fn._base.checks import check_callable, concrete, split_aux
from illia_fn._base.numerics import weighted_mean
from illia_fn._base.trees import PyTree
from illia_fn.likelihoods._example_losses import LossFn as LossFn
from illia_fn.likelihoods._example_losses import example_losses


@dataclasses.dataclass(frozen=True, eq=False)
class DataTerm:
    """The data term of an objective: the negative log-likelihood of each example, given one network.

    Attributes:
        caller: the public function that errors name.
        apply_fn, x, y, loss_fn, weights, needs_key, has_aux: as in `elbo_loss`.

    >>> import jax.numpy as jnp
    >>> data = DataTerm("my_loss", lambda w, x: x * w, jnp.ones(2), jnp.array([0.0, 1.0]))
    >>> losses, _ = data.losses(jnp.ones(()))
    >>> print(losses, data.mean(losses))
    [1.4189385 0.9189385] 1.1689385
    """

    caller: str
    apply_fn: Callable[..., Any]
    x: Any
    y: Any
    _: dataclasses.KW_ONLY
    loss_fn: LossFn | None = None
    weights: ArrayLike | None = None
    needs_key: bool = False
    has_aux: bool = False

    def __post_init__(self):
        check_callable(self.caller, "apply_fn", self.apply_fn)
        if self.loss_fn is not None:
            check_callable(self.caller, "loss_fn", self.loss_fn)
        _check_weights(self.caller, self.weights)

    @property
    def batch_size(self) -> Any:
        """That of the targets."""
        return np.shape(jax.tree.leaves(self.y)[0])[0]

    def losses(self, w: PyTree, *apply_key: jax.Array) -> tuple[jax.Array, Any]:
        """The loss of each example under the network with parameters w, (B,), or the scalar of loss_fn; and aux."""
        outputs = self.apply_fn(w, self.x, *apply_key)
        outputs, aux = split_aux(self.caller, "apply_fn", outputs, has_aux=self.has_aux)
        return self.losses_of_outputs(outputs), aux

    def losses_of_outputs(self, outputs: Any) -> jax.Array:
        """The same, of what apply_fn returned."""
        return example_losses(self.caller, self.loss_fn, outputs, self.y, self.weights)

    def mean(self, losses: jax.Array) -> jax.Array:
        """The mean over the examples, sum_i weights_i loss_i / sum_i weights_i; a scalar is that mean already."""
        return weighted_mean(losses, self.weights)

    def require_examples(self, losses: jax.Array) -> jax.Array:
        """The losses, one for each example: a scalar is refused."""
        if losses.ndim == 0:
            raise ValueError(
                f"{self.caller}: loss_fn must return one value per example, but it returned a scalar. Drop its mean."
            )
        return losses


def _check_weights(caller: str, weights: ArrayLike | None) -> None:
    """Weights are finite, not negative and not all zero, as far as that can be known before tracing."""
    value = None if weights is None else concrete(weights)
    if value is not None and not (np.all(value >= 0) and 0 < np.sum(value, dtype=np.float64) < np.inf):
        raise ValueError(
            f"{caller}: weights must be finite, not negative and not all zero, got {weights}. Skip empty batches."
        )
