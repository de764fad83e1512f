"""Classification under shift: data with inputs that training has not shown, a network, its training and its scores."""

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from mnist1d import data as mnist1d
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import illia_fn
from illia_fn import metrics

LEVELS = (1, 2, 3, 4)
NUM_CLASSES = 8  # of ten: each seed holds out two others
NETWORKS = 64  # that predict


class Task(NamedTuple):
    """One seed: eight classes to learn, and their test examples under shifts of four levels.

    Attributes:
        x, y: examples to train on.
        inputs: what is predicted, by name: "validation", "clean", "rotated 1" to "noisy 4", and "other classes".
        labels: those of "validation", and those of the others but the last.
    """

    x: np.ndarray
    y: np.ndarray
    inputs: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


class Source(NamedTuple):
    """Examples of ten classes, how many of eight classes to take, and what shifts them, by so much for each level."""

    x: np.ndarray
    y: np.ndarray
    num_train: int
    num_validation: int
    num_test: int
    num_other: int
    shift: str
    shifted: Callable[[np.ndarray, int], np.ndarray]
    noise: float

    def task(self, seed: int) -> Task:
        """The split of a seed, without the classes 2 seed and 2 seed + 1, modulo ten."""
        out = (2 * seed) % 10
        order = np.random.default_rng(seed).permutation(len(self.x))
        is_other = self.y[order] // 2 == out // 2
        order, other = order[~is_other], order[is_other][: self.num_other]
        sizes = np.cumsum([self.num_train, self.num_validation, self.num_test])
        train, validation, test, _ = np.split(order, sizes)
        label = np.where(self.y > out, self.y - 2, self.y)  # 0 to 7
        inputs = {"validation": self.x[validation], "clean": self.x[test]}
        for level in LEVELS:
            inputs[f"{self.shift} {level}"] = self.shifted(self.x[test], level)
        for level in LEVELS:
            noise = np.random.default_rng([seed, level]).normal(size=self.x[test].shape)
            inputs[f"noisy {level}"] = self.x[test] + level * self.noise * noise
        inputs["other classes"] = self.x[other]
        labels = {name: label[validation if name == "validation" else test] for name in inputs}
        del labels["other classes"]
        return Task(_flat(self.x[train]), label[train], {name: _flat(x) for name, x in inputs.items()}, labels)


def _flat(x: np.ndarray) -> np.ndarray:
    return np.float32(x.reshape(len(x), -1))


def digits() -> Source:
    """Scans of 8 x 8 pixels in [0, 1], rotated by 15 to 60 degrees."""

    def rotated(x: np.ndarray, level: int) -> np.ndarray:
        return np.stack([rotate(image, 15 * level, reshape=False, order=1) for image in x])

    bunch = load_digits()
    return Source(bunch.images / 16, np.int32(bunch.target), 900, 240, 280, 300, "rotated", rotated, noise=0.1)


def mnist_1d() -> Source:
    """MNIST-1D, https://arxiv.org/abs/2011.14439: 40 numbers of unit scale, sheared by 1 to 4 more than they were.

    Those that are trained on have a shear of up to 2.4 either way, and independent noise of 0.13.
    """
    made = mnist1d.make_dataset()

    def shear(x: np.ndarray, level: int) -> np.ndarray:
        sign = np.where(np.arange(len(x)) % 2, 1.0, -1.0)
        return x + level * sign[:, None] * np.linspace(-0.5, 0.5, x.shape[1])

    x, y = (np.concatenate([made[name], made[f"{name}_test"]]) for name in "xy")
    return Source(x, np.int32(y), 2600, 600, 800, 800, "sheared", shear, noise=0.2)


SOURCES = {"digits": digits, "MNIST-1D": mnist_1d}
SHIFTS = {"digits": "rotated", "MNIST-1D": "sheared"}


class MLP(nn.Module):
    """Two hidden layers; `rate` of dropout after each."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (100, 100):
            x = nn.Dropout(self.rate, deterministic=self.rate == 0.0)(nn.relu(nn.Dense(width)(x)))
        return nn.Dense(NUM_CLASSES)(x)


class Recipe(NamedTuple):
    """How to come to networks that predict.

    Attributes:
        family: what of the network has a posterior: nothing ("point"), the masks of "dropout", the "last layer", all
            of it ("mean field"), or the factors of its kernels, four of each ("rank-1").
        members: how many of these there are, each trained from a start of its own.
        steps: training steps of each.
        prior: the standard deviation of the prior N(0, prior^2) of the weights, those without a posterior too.
        kl_weight: the weight of the KL.
        coupling: of the noise.
        rate: of dropout.
    """

    family: str
    members: int = 1
    steps: int = 1500
    prior: float = 1.0
    kl_weight: float = 1.0
    coupling: str = "shared"
    rate: float = 0.0

    @partial(jax.jit, static_argnums=(0, 2))
    def start(self, key: jax.Array, num_features: int) -> Any:
        params = MLP().init(key, jnp.zeros((1, num_features)))["params"]
        if self.family == "rank-1":
            return illia_fn.rank_one(params, num_components=4, key=jax.random.fold_in(key, 1))
        masks = {"last layer": illia_fn.by_path("Dense_2/.*"), "mean field": None}
        return illia_fn.mean_field(params, mask=masks[self.family]) if self.family in masks else params

    def network(self, w: Any, x: jax.Array, *key: jax.Array) -> jax.Array:
        params = illia_fn.rank_one_weights(w) if self.family == "rank-1" else w
        return MLP(self.rate).apply({"params": params}, x, rngs={"dropout": key[0]} if key else {})

    @property
    def passes(self) -> int:
        """Gradients of a batch in all of its training."""
        return self.members * self.steps

    @property
    def setting(self) -> str:
        """What is not as by default, but for the family."""
        changed = [name for name, value in self._field_defaults.items() if getattr(self, name) != value]
        return ", ".join(f"{name} {getattr(self, name)}" for name in changed) or "defaults"

    def __str__(self) -> str:
        return f"{self.family}, {self.setting}"

    @property
    def options(self) -> dict[str, Any]:
        return {"needs_key": True} if self.family == "dropout" else {}

    def loss(self, q: Any, x: jax.Array, y: jax.Array, key: jax.Array, num_data: int) -> jax.Array:
        """The negative ELBO; what is deterministic has the logarithm of its prior in the place of a KL."""
        prior = illia_fn.Normal(0.0, self.prior)
        nodes = jax.tree.leaves(q, is_leaf=illia_fn.is_posterior)
        log_prior = sum(jnp.sum(prior.log_prob(w)) for w in nodes if not illia_fn.is_posterior(w))
        of_q = {"params": None, "factors": illia_fn.Normal(1.0, 0.1)} if self.family == "rank-1" else prior
        weight = self.kl_weight if illia_fn.num_params(q) else 0.0
        options = {"prior": of_q, "kl_weight": weight, "coupling": self.coupling, **self.options}
        return illia_fn.elbo_loss(self.network, q, x, y, key, num_data=num_data, **options) - log_prior / num_data


@partial(jax.jit, static_argnums=0)
def fit(recipe: Recipe, q: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
    """Adam at the rate of the README, on batches of 128."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, recipe.steps))
    if illia_fn.num_params(q):
        optimizer = optax.chain(optimizer, illia_fn.slow_scales())

    def step(carry: Any, key: jax.Array) -> Any:
        q, state = carry
        batch_key, loss_key = jax.random.split(key)
        batch = jax.random.randint(batch_key, (128,), 0, len(x))
        grads = jax.grad(recipe.loss)(q, x[batch], y[batch], loss_key, len(x))
        updates, state = optimizer.update(grads, state, q)
        return (optax.apply_updates(q, updates), state), ()

    return jax.lax.scan(step, (q, optimizer.init(q)), jax.random.split(key, recipe.steps))[0][0]


@partial(jax.jit, static_argnums=(0, 1))
def probabilities(recipe: Recipe, networks: int, q: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    """The mean over so many networks of one member, (B, classes)."""
    outputs = illia_fn.predict(recipe.network, q, x, key, networks, **recipe.options)
    return illia_fn.class_summary(illia_fn.class_probs(illia_fn.categorical_nll, outputs)).probs


def run(recipe: Recipe, source: str, seed: int) -> tuple[dict[str, np.ndarray], float]:
    """The probabilities of all inputs, and the CPU seconds of training."""
    networks = 1 if recipe.family == "point" else NETWORKS // recipe.members
    of_members = [
        _run_member(recipe._replace(members=1), networks, source, seed, member) for member in range(recipe.members)
    ]
    probs, seconds = zip(*of_members, strict=True)
    inputs = task_of(source, seed).inputs
    ends = np.cumsum([len(part) for part in inputs.values()])[:-1]
    return dict(zip(inputs, np.split(np.mean(probs, axis=0), ends), strict=True)), sum(seconds)


@cache
def _run_member(recipe: Recipe, networks: int, source: str, seed: int, member: int) -> tuple[np.ndarray, float]:
    task = task_of(source, seed)
    x = np.concatenate(list(task.inputs.values()))
    start, fit_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), member), 3)
    q, begin = recipe.start(start, x.shape[1]), time.process_time()
    q = jax.block_until_ready(fit(recipe, q, task.x, task.y, fit_key))
    seconds = time.process_time() - begin
    return np.asarray(probabilities(recipe, networks, q, x, key)), seconds


@cache
def task_of(source: str, seed: int) -> Task:
    return _source(source).task(seed)


@cache
def _source(name: str) -> Source:
    return SOURCES[name]()


SCORES = {
    "accuracy": metrics.accuracy,
    "NLL": metrics.negative_log_likelihood,
    "ECE": metrics.calibration_error,
    "Brier": metrics.brier_score,
}


def scores(probs: dict[str, np.ndarray], task: Task) -> dict[str, dict[str, float]]:
    """Of every input that has labels; and how well the entropy tells "other classes" from "clean" inputs."""
    found = {
        name: {score: float(of(probs[name], labels)) for score, of in SCORES.items()}
        for name, labels in task.labels.items()
    }
    entropy = [np.asarray(metrics.predictive_entropy(probs[name])) for name in ("clean", "other classes")]
    is_other = np.repeat([0, 1], [len(values) for values in entropy])
    found["other classes"] = {"AUROC": float(roc_auc_score(is_other, np.concatenate(entropy)))}
    return found
