"""What the demo trains, and how: networks, their recipes, and what they are compared with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import illia_fn
from illia_fn._demo import models
from illia_fn._demo.data import Dataset
from illia_fn.frameworks import from_nnx

PRIOR = illia_fn.Normal(0.0, 1.0)  # the default


class Ensemble(NamedTuple):
    """Networks that were trained apart, from other starts."""

    members: list[Any]


class Recipe(NamedTuple):
    """How a network becomes Bayesian: its mask, the weight of its KL, and the rate of scales to that of means.

    With several members it is the mixture of as many, from other starts.
    """

    mask: Callable[[Any], Any] | None = None
    kl_weight: float = 1.0
    scale_rate: float = 0.2
    members: int = 1


last_layer = illia_fn.by_path("linear/.*")  # all models here end with it


def recipes_of(dataset: Dataset, members: int) -> dict[str, Recipe]:
    """Several networks with the defaults, which `benchmarks.evidence.uci_regression` recommends, and one.

    For images before them the last layer alone, which `benchmarks.digits` chose on a validation split.
    """
    recipes = {f"mixture of {members}": Recipe(members=members)} if members > 1 else {}
    recipes["Bayesian"] = Recipe()
    return recipes if dataset.x_train.ndim == 2 else {"Bayesian last layer": Recipe(last_layer), **recipes}


def model_of(dataset: Dataset, seed: int) -> tuple[Callable[..., Any], Any]:
    """A network for the data: apply_fn and its first parameters."""
    rngs = nnx.Rngs(seed)
    if dataset.classes is None:
        model = models.Regressor(dataset.x_train.shape[1], rngs)
    elif dataset.x_train.ndim == 3:
        model = models.ConvNet(len(dataset.classes), rngs)
    else:
        model = models.Classifier(dataset.x_train.shape[1], len(dataset.classes), rngs)
    functional = from_nnx(model)
    return functional.eval_fn(), functional.params


def with_prior_on_all(objective: Callable[..., Any], **options: Any) -> Callable[..., jax.Array]:
    """The objective, and -log p(w) / N of the deterministic parameters: of a plain network, maximum a posteriori."""

    def loss(apply_fn: Any, q: Any, x: Any, y: Any, key: jax.Array, *, num_data: int, loss_fn: Any) -> jax.Array:
        value = objective(apply_fn, q, x, y, key, num_data=num_data, loss_fn=loss_fn, **options)
        leaves = jax.tree.leaves(q, is_leaf=illia_fn.is_posterior)
        plain = [jnp.sum(PRIOR.log_prob(w)) for w in leaves if not illia_fn.is_posterior(w)]
        return value - sum(plain) / num_data

    return loss


map_loss = with_prior_on_all(illia_fn.elbo_loss, kl_weight=0.0)
