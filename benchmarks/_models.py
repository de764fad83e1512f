"""Three models in plain JAX of 28x28 images in 10 classes: init(seed) -> params, apply(params, x) with x (B, 784)."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]

SIDE, CLASSES = 28, 10
WIDTH, HEADS, HIDDEN = 64, 4, 256


class Model(NamedTuple):
    init: Callable[[int], Params]
    apply: Callable[[Params, jax.Array], jax.Array]


def mlp_init(seed: int) -> Params:
    rng = np.random.default_rng(seed)
    sizes = [SIDE * SIDE, 400, 400, CLASSES]
    return {f"dense_{i}": _layer(rng, *shape) for i, shape in enumerate(itertools.pairwise(sizes))}


def mlp(params: Params, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(_dense(params["dense_0"], x))
    x = jax.nn.relu(_dense(params["dense_1"], x))
    return _dense(params["dense_2"], x)


def cnn_init(seed: int) -> Params:
    rng = np.random.default_rng(seed)
    return {
        "conv_0": _layer(rng, 3, 3, 1, 16),
        "conv_1": _layer(rng, 3, 3, 16, 32),
        "dense_0": _layer(rng, (SIDE // 4) ** 2 * 32, 64),
        "dense_1": _layer(rng, 64, CLASSES),
    }


def cnn(params: Params, x: jax.Array) -> jax.Array:
    x = x.reshape(-1, SIDE, SIDE, 1)
    for name in ("conv_0", "conv_1"):
        x = _max_pool(jax.nn.relu(_conv(params[name], x)))
    x = jax.nn.relu(_dense(params["dense_0"], x.reshape(len(x), -1)))
    return _dense(params["dense_1"], x)


def transformer_init(seed: int, num_blocks: int = 2) -> Params:
    rng = np.random.default_rng(seed)
    params = {"embed": _layer(rng, SIDE, WIDTH), "position": _normal(rng, (SIDE, WIDTH), 0.02)}
    for i in range(num_blocks):
        params[f"block_{i}"] = {
            "norm_0": _norm_init(),
            "qkv": _layer(rng, WIDTH, 3 * WIDTH, gain=1.0),
            "out": _layer(rng, WIDTH, WIDTH, gain=1.0),
            "norm_1": _norm_init(),
            "up": _layer(rng, WIDTH, HIDDEN),
            "down": _layer(rng, HIDDEN, WIDTH, gain=1.0),
        }
    return params | {"norm": _norm_init(), "head": _layer(rng, WIDTH, CLASSES, gain=1.0)}


def transformer(params: Params, x: jax.Array) -> jax.Array:
    """The rows of the image are the tokens."""
    x = _dense(params["embed"], x.reshape(-1, SIDE, SIDE)) + params["position"]
    for block in (params[name] for name in params if name.startswith("block")):
        qkv = _dense(block["qkv"], _norm(block["norm_0"], x))
        q, k, v = jnp.split(qkv.reshape(*qkv.shape[:2], HEADS, -1), 3, axis=-1)
        attended = jax.nn.dot_product_attention(q, k, v)
        x = x + _dense(block["out"], attended.reshape(x.shape))
        x = x + _dense(block["down"], jax.nn.gelu(_dense(block["up"], _norm(block["norm_1"], x))))
    return _dense(params["head"], _norm(params["norm"], x).mean(axis=1))


MODELS = {"MLP": Model(mlp_init, mlp), "CNN": Model(cnn_init, cnn), "transformer": Model(transformer_init, transformer)}


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> jax.Array:
    return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)


def _layer(rng: np.random.Generator, *shape: int, gain: float = 2.0) -> Params:
    kernel = _normal(rng, shape, (gain / np.prod(shape[:-1])) ** 0.5)
    return {"kernel": kernel, "bias": jnp.zeros(shape[-1])}


def _norm_init() -> Params:
    return {"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)}


def _dense(layer: Params, x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]


def _conv(layer: Params, x: jax.Array) -> jax.Array:
    dimensions = ("NHWC", "HWIO", "NHWC")
    return (
        jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=dimensions) + layer["bias"]
    )


def _max_pool(x: jax.Array) -> jax.Array:
    count, height, width, channels = x.shape
    return x.reshape(count, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def _norm(layer: Params, x: jax.Array) -> jax.Array:
    return jax.nn.standardize(x, epsilon=1e-6) * layer["scale"] + layer["bias"]
