"""Ordinary flax.nnx models: nothing in them knows that their weights will be uncertain."""

import jax
from flax import nnx


class ConvNet(nnx.Module):
    """Two convolutions and a linear layer, for 8 x 8 images; returns logits."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.linear = nnx.Linear(4 * 4 * 32, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(x[..., None]))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), strides=(2, 2))
        return self.linear(x.reshape(len(x), -1))


class Classifier(nnx.Module):
    """One hidden layer, for a table; returns logits."""

    def __init__(self, num_features: int, num_classes: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(num_features, 50, rngs=rngs)
        self.linear = nnx.Linear(50, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(nnx.relu(self.hidden(x)))


class Regressor(nnx.Module):
    """One hidden layer, for a table; returns (loc, rho): softplus(rho) is the noise scale of each target."""

    def __init__(self, num_features: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(num_features, 50, rngs=rngs)
        self.linear = nnx.Linear(50, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = self.linear(nnx.relu(self.hidden(x)))
        return outputs[:, 0], outputs[:, 1]
