"""Models that use their weights in every way that a coupling must understand: name -> Case."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

BATCH = 3
KEY = jax.random.key(0)


class Case(NamedTuple):
    """A model, and the leaves that no coupling moves from one shared draw."""

    apply_fn: Callable[..., Any]
    params: Any
    x: Any
    shared: tuple[str, ...] = ()


def array(*shape: int, seed: int = 0, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0.0, scale, shape), jnp.float32)


def params(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    return {name: array(*shape, seed=seed, scale=0.5) for seed, (name, shape) in enumerate(shapes.items())}


def plain(apply_fn: Callable[..., Any], x: Any, shared: tuple[str, ...] = (), **shapes: tuple[int, ...]) -> Callable:
    return lambda: Case(apply_fn, params(**shapes), x, shared)


def conv(x, kernel, spec="NHWC HWIO NHWC", strides=(1, 1), padding="SAME", **options):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=tuple(spec.split()), **options)


VECTOR, TOKENS, SEQUENCE, IMAGE = (
    array(BATCH, 4),
    jnp.arange(3 * BATCH).reshape(BATCH, 3),
    array(BATCH, 3, 4),
    array(BATCH, 6, 6, 4),
)
KERNEL = array(4, 3)


def factors(w, x):
    """In one product of three; one of them moves nowhere."""
    return jnp.tanh(x @ (KERNEL * (w["r"] * w["s"] * w["t"])).T.T / 2.0 + w["b"])


def factors_of_convolutions(w, x):
    """Along the channels; two of them in two products."""
    first, second = jnp.ones((3, 3, 4, 6)) / 9, jnp.arange(108.0).reshape(3, 3, 6, 2) / 50 - 1
    h = jnp.tanh(conv(x, first * (w["r"][:, None] * w["s"])))
    h = jnp.tanh(conv(h, second * (w["t"][:, None] * w["u"][None])))
    return jnp.tanh(conv(h, second.swapaxes(2, 3) * (w["u"][:, None] * w["t"]))).mean(axis=(1, 2))


def factors_of_scanned_layers(w, x):
    """Sliced by a loop, and one for all layers."""
    kernels = KERNEL[:3, None, :] * (w["r"][:, :, None] * w["s"][:, None])[:, :, :3]

    def layer(h, parts):
        kernel, bias = parts
        return jnp.tanh(jnp.pad(h @ kernel, ((0, 0), (0, 1))) + bias), None

    return jax.lax.scan(layer, x, (kernels, w["b"]))[0]


def factors_met_by_data(w, x):
    """Element by element, and each by itself as well."""
    return (x * w["r"]) * w["s"] + x * (w["r"] * w["s"])


def factors_with_an_offset(w, x):
    """A sum of products is none: it takes a form of its own."""
    return x @ (KERNEL * ((1.0 + w["r"])[:, None] * (1.0 + w["s"])))


def factors_used_elsewhere(w, x):
    """In what is not linear."""
    return x @ (KERNEL * (w["r"][:, None] * w["s"])) + x @ (KERNEL * jnp.exp(w["s"]))


def factors_of_an_embedding(w, tokens):
    """Indices are no data to move to."""
    return (jnp.tile(KERNEL, (3, 1)) * (w["t"] * w["r"]))[tokens]


def factors_of_a_weight(w, x):
    return x @ (w["a"] * w["t"]) + x @ (KERNEL * (w["t"] * w["s"]))


def factors_that_are_concatenated(w, x):
    return x @ (KERNEL * (w["r"] * w["t"])) + x[:, :2] @ jnp.concatenate([w["t"], w["u"]])[:, None]


def a_row_that_is_gathered(w, tokens):
    return w["a"][0][tokens] + (w["a"].T @ jnp.ones((2, 1)))[:3, 0]


def factors_along_both_axes(w, x):
    """One is as large as the kernel: it moves to neither side."""
    return x @ (KERNEL * (w["r"] * w["s"]))


def factors_of_each_other(w, x):
    """What is in a product of which it cannot move moves in no other."""
    return x @ (KERNEL * (w["r"] * w["s"])) + (x @ (KERNEL * w["r"])) @ (jnp.eye(3) * (w["s"] * w["t"]))


def mlp(w, x):
    return jnp.tanh(x @ w["a"] + w["b"]) @ w["c"]


def split_attention(w, x):
    q, k, v = jnp.split(w["qkv"], 3, axis=1)
    scores = jnp.einsum("btf,bsf->bts", x @ q, x @ k)
    return jax.nn.softmax(scores) @ (x @ v)


def tied_embedding(w, tokens):
    return w["embed"][tokens].mean(axis=1) @ w["embed"].T


def rnn(w, x):
    def step(h, x):
        h = jnp.tanh(x @ w["in"] + h @ w["h"] + w["b"])
        return h, h

    return jax.lax.scan(step, jnp.zeros((len(x), 5)), x.swapaxes(0, 1))[1].swapaxes(0, 1)


def scanned_layers(w, x):
    return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer["w"] + layer["b"]), None), x, w)[0]


def looped_layers(w, x):
    return jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ w["w"][i] + h), x)


def sum_of_rounds(w, x):
    return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.tanh(s[1] @ w["w"])), (0, x))[1]


def branches(w, x):
    return jax.lax.cond(x.sum() > 0, lambda: jnp.sin(x @ w["w"]), lambda: 2.0 * x @ w["w"] + w["b"])


def energy_gradient(w, x):
    return jax.grad(lambda x: jnp.sum(jnp.tanh(x @ w["a"]) @ w["c"]))(x)


@jax.custom_vjp
def doubled(w):
    return 2.0 * w


doubled.defvjp(lambda w: (2.0 * w, None), lambda _, g: (2.0 * g,))


def heads(w, x):
    h = jnp.tanh(x @ w["a"])
    return {"loc": h @ w["loc"], "rho": (h @ w["rho"])[:, 0] + w["noise"]}


def masked(w, x):
    mask = jnp.tril(jnp.ones((4, 4)))
    return x @ (w["a"] * mask / 2.0) + (1.0 + w["scale"]) * x - x @ (-w["a"]).astype(jnp.float32)


def pieces(w, x):
    kernel = w["a"][::-1, 1:5].reshape(4, 2, 2)[:, None, :, ::-1]
    return jnp.einsum("bf,fahd->bahd", x, kernel) + jax.lax.stop_gradient(w["a"][0, 0])


def norm(w, x):
    x = (x - x.mean(axis=-1, keepdims=True)) / (x.std(axis=-1, keepdims=True) + 0.1)
    return x * w["scale"] + w["bias"]


def transformer(w, tokens):
    x = w["embed"][tokens] + w["position"]
    x = x + split_attention(w, norm(w, x))
    return jax.nn.gelu(x @ w["up"]) @ w["down"]


def concatenated(w, x):
    return x @ jnp.concatenate([w["a"], w["b"]], axis=1)


def joined_inputs(w, x):
    """Along the axis that is contracted, with a bias as a row, and with zeros that are no weights."""
    kernel = jnp.concatenate([w["a"].T[::-1], w["b"][None], w["c"], jnp.zeros((1, 5))])
    return jnp.tanh(jnp.concatenate([x, x[..., :3]], axis=-1) @ kernel)


def fused_attention(w, x):
    q, k, v = jnp.split(x @ jnp.concatenate([w["q"], w["k"], w["v"]], axis=1), 3, axis=-1)
    return jax.nn.softmax(jnp.einsum("btf,bsf->bts", q, k)) @ v @ w["o"]


def stacked_attention(w, x):
    q, k, v = jnp.einsum("btf,ifg->ibtg", x, jnp.stack([w["q"], w["k"], w["v"]]))
    return jnp.einsum("btf,bsf->bts", q, k) @ v


def stacked_layers(w, x):
    """The layers of a list, scanned, twice."""
    layers = jnp.stack([w["a"], w["b"], w["c"]])
    for _ in range(2):
        x = jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, layers)[0]
    return x


def fused_in_scanned_layers(w, x):
    def layer(h, w):
        return jnp.tanh(h @ jnp.concatenate([w["a"], w["b"]], axis=1)), None

    return jax.lax.scan(layer, x, w)[0]


def concatenated_by_index(w, x):
    """Windows that overlap, so that an element stands in another place of the whole in another round."""

    def step(i, h):
        window = jax.lax.dynamic_slice_in_dim(w["a"], i, 2, axis=1)
        return jnp.tanh(h @ jnp.concatenate([window, w["b"]], axis=1))

    return jax.lax.fori_loop(0, 2, step, x)


def nested(w, x):
    whole = jnp.concatenate([jnp.concatenate([w["a"], w["b"]], axis=1), w["c"]])
    return jnp.tanh(jnp.concatenate([x, x[..., :2]], axis=-1) @ whole)


def concatenated_and_used(w, x):
    return x @ jnp.concatenate([w["a"], w["b"]], axis=1) + jnp.sum(x @ w["a"], axis=-1, keepdims=True)


def twice_in_one(w, x):
    return jnp.tanh(x @ jnp.concatenate([w["a"], 2.0 * w["a"]], axis=1))


def class_token(w, x):
    token = jnp.broadcast_to(w["token"], (len(x), 1, 4))
    return jnp.tanh(jnp.concatenate([token, x], axis=1) @ w["qkv"]).mean(axis=1)


PLAIN = {
    "transposed weights": plain(lambda w, x: jnp.tanh(x @ w["a"].T) @ w["a"], VECTOR, a=(5, 4)),
    "weights on the left": plain(lambda w, x: jax.vmap(lambda x: w["a"] @ x + w["b"])(x), VECTOR, a=(5, 4), b=(5,)),
    "weights with a batch axis": plain(lambda w, x: jnp.einsum("bhf,hfg->bhg", x, w["a"]), SEQUENCE, a=(3, 4, 5)),
    "transformer": plain(
        transformer, TOKENS, embed=(9, 4), position=(3, 4), qkv=(4, 12), scale=(4,), bias=(4,), up=(4, 6), down=(6, 4)
    ),
    "tied embedding": plain(tied_embedding, TOKENS, embed=(9, 4)),
    "convolution, strided": plain(lambda w, x: conv(x, w["k"], strides=(2, 1)) + w["b"], IMAGE, k=(3, 3, 4, 5), b=(5,)),
    "convolution, grouped, channels first": plain(
        lambda w, x: conv(x, w["k"], "NCHW OIHW NCHW", padding="VALID", feature_group_count=2),
        IMAGE.swapaxes(1, 3),
        k=(6, 2, 3, 3),
    ),
    "convolution, depthwise": plain(lambda w, x: conv(x, w["k"], feature_group_count=4), IMAGE, k=(3, 3, 1, 8)),
    "convolution, transposed": plain(
        lambda w, x: jax.lax.conv_transpose(x, w["k"], (2, 2), "SAME", transpose_kernel=True), IMAGE, k=(3, 3, 5, 4)
    ),
    "rnn": plain(rnn, SEQUENCE, **{"in": (4, 5), "h": (5, 5), "b": (5,)}),
    "scanned layers": plain(scanned_layers, VECTOR, w=(3, 4, 4), b=(3, 4)),
    "layers by index": plain(looped_layers, VECTOR, ("w",), w=(3, 4, 4)),
    "while": plain(sum_of_rounds, VECTOR, w=(4, 4)),
    "cond": plain(branches, VECTOR, w=(4, 5), b=(5,)),
    "gradient inside": plain(energy_gradient, VECTOR, a=(4, 5), c=(5, 2)),
    "outputs in a dict": plain(heads, VECTOR, a=(4, 5), loc=(5, 2), rho=(5, 1), noise=()),
    "inputs in a dict": plain(
        lambda w, x: x["a"] @ w["a"] + x["b"].mean(axis=1) @ w["b"], {"a": VECTOR, "b": SEQUENCE}, a=(4, 2), b=(4, 2)
    ),
    "slope of the positions": plain(
        lambda w, x: jnp.sin(x + (w["s"][0] * jnp.arange(4.0))[None]) @ w["a"], VECTOR, s=(2,), a=(4, 2)
    ),
    "masked and scaled": plain(masked, VECTOR, a=(4, 4), scale=(4,)),
    "slices": plain(pieces, VECTOR, a=(4, 6)),
    "weight norm": plain(lambda w, x: x @ (w["a"] / jnp.linalg.norm(w["a"])), VECTOR, ("a",), a=(4, 5)),
    "custom vjp": plain(lambda w, x: x @ doubled(w["a"]), VECTOR, ("a",), a=(4, 5)),
    "product of weights": plain(lambda w, x: x @ (w["a"] @ w["b"]), VECTOR, ("a", "b"), a=(4, 2), b=(2, 5)),
    "factors": plain(factors, SEQUENCE, r=(4, 1), s=(1, 3), t=(), b=(3,)),
    "factors of convolutions": plain(factors_of_convolutions, IMAGE, r=(4,), s=(6,), t=(6,), u=(2,)),
    "factors of scanned layers": plain(factors_of_scanned_layers, VECTOR, r=(3, 4), s=(3, 4), b=(3, 4)),
    "factors met by data": plain(factors_met_by_data, VECTOR, r=(4,), s=(4,)),
    "factors with an offset": plain(factors_with_an_offset, SEQUENCE, ("s",), r=(4,), s=(3,)),
    "factors used elsewhere": plain(factors_used_elsewhere, SEQUENCE, ("s",), r=(4,), s=(3,)),
    "factors of integers": plain(lambda w, x: x @ (KERNEL[:3] * (w["r"] * w["s"])), TOKENS % 3, r=(3, 1), s=(1, 3)),
    "factors of an embedding": plain(factors_of_an_embedding, TOKENS, t=(), r=(3,)),
    "factors, negated": plain(lambda w, x: x @ -(KERNEL * (w["r"] * w["s"])), SEQUENCE, r=(4, 1), s=(1, 3)),
    "a kernel, widened and negated": plain(lambda w, x: x @ -(KERNEL * w["r"]), SEQUENCE, r=(4, 1)),
    "factors, and a weight": plain(
        lambda w, x: x @ (w["a"] * (w["r"] * w["s"])), SEQUENCE, "rs", a=(4, 3), r=(4, 1), s=(1, 3)
    ),
    "factors of a weight": plain(factors_of_a_weight, VECTOR, a=(4, 3), t=(), s=(3,)),
    "factors that are concatenated": plain(factors_that_are_concatenated, VECTOR, r=(4, 1), t=(1,), u=(1,)),
    "a kernel of booleans": plain(lambda w, x: (x > 0) @ w["a"] + (x > 0).astype(jnp.uint8) @ w["a"], VECTOR, a=(4, 3)),
    "a row that is gathered": plain(a_row_that_is_gathered, TOKENS, a=(2, 9)),
    "factors along both axes": plain(factors_along_both_axes, SEQUENCE, ("s",), r=(4, 3), s=(1, 3)),
    "factors of each other": plain(factors_of_each_other, SEQUENCE, ("s",), r=(4, 1), s=(1, 3), t=(3, 1)),
    "concatenated inputs": plain(joined_inputs, SEQUENCE, a=(5, 4), b=(5,), c=(1, 5)),
    "fused attention": plain(fused_attention, SEQUENCE, q=(4, 4), k=(4, 4), v=(4, 4), o=(4, 4)),
    "stacked attention": plain(stacked_attention, SEQUENCE, q=(4, 4), k=(4, 4), v=(4, 4)),
    "stacked layers": plain(stacked_layers, VECTOR, a=(4, 4), b=(4, 4), c=(4, 4)),
    "fused in scanned layers": plain(fused_in_scanned_layers, SEQUENCE, a=(3, 4, 2), b=(3, 4, 2)),
    "concatenated by index": plain(concatenated_by_index, VECTOR, ("a",), a=(4, 3), b=(4, 2)),
    "nested concatenation": plain(nested, SEQUENCE, a=(4, 2), b=(4, 3), c=(2, 5)),
    "concatenated and used": plain(concatenated_and_used, VECTOR, a=(4, 2), b=(4, 3)),
    "twice in one": plain(twice_in_one, VECTOR, a=(4, 2)),
    "class token": plain(class_token, SEQUENCE, token=(4,), qkv=(4, 12)),
    "temperature": plain(lambda w, x: x @ w["a"] / jnp.exp(w["tau"]), VECTOR, a=(4, 2), tau=()),
    "not used": plain(lambda w, x: x @ w["a"], VECTOR, ("b",), a=(4, 2), b=(2,)),
}

# Of which the cases above and below are made.
PARTS = {
    "mlp": plain(mlp, VECTOR, a=(4, 5), b=(5,), c=(5, 2)),
    "dense on a sequence": plain(lambda w, x: x @ w["a"] + w["b"], SEQUENCE, a=(4, 5), b=(5,)),
    "one token": plain(lambda w, t: w["embed"][t] @ w["a"], TOKENS[:, 0], embed=(9, 4), a=(4, 2)),
    "concatenated weights": plain(concatenated, SEQUENCE, a=(4, 2), b=(4, 3)),
}


def filled(shapes):
    """Parameters from NumPy, as initialisers take a program each."""
    leaves, structure = jax.tree.flatten(shapes)
    return structure.unflatten([array(*leaf.shape, seed=seed, scale=0.5) for seed, leaf in enumerate(leaves)])


def linen(model: nn.Module, x: Any, shared: tuple[str, ...] = ()) -> Callable:
    def build():
        params = filled(jax.eval_shape(model.init, KEY, x[:1])["params"])
        return Case(lambda params, x: model.apply({"params": params}, x), params, x, shared)

    return build


def of_nnx(make: Callable[[nnx.Rngs], Any], x: Any, call: Callable = lambda model, x: model(x)) -> Callable:
    def build():
        graphdef, params, rest = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)
        params = filled(params)
        return Case(lambda params, x: call(nnx.merge(graphdef, params, rest, copy=True), x), params, x)

    return build


def of_equinox(make: Callable[[jax.Array], Any], x: Any, call: Callable = lambda model, x: model(x)) -> Callable:
    def build():
        shapes, static = eqx.partition(eqx.filter_eval_shape(make, KEY), lambda leaf: hasattr(leaf, "shape"))
        params = filled(shapes)
        return Case(lambda params, x: jax.vmap(lambda x: call(eqx.combine(params, static), x))(x), params, x)

    return build


def of_haiku(f: Callable[[Any], Any], x: Any, shared: tuple[str, ...] = ()) -> Callable:
    def build():
        model = hk.without_apply_rng(hk.transform(f))
        return Case(model.apply, filled(jax.eval_shape(model.init, KEY, x[:1])), x, shared)

    return build


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.Dense(4)(nn.gelu(nn.Dense(6)(nn.LayerNorm()(x)))), None


class ScannedBlocks(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()(x)[0]


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=2)(nn.Embed(9, 4)(x))


def scanned_cell(cell, x):
    return jax.lax.scan(lambda h, x: (cell(x, h), None), jnp.zeros(5), x)[0]


FRAMEWORKS = {
    "linen cnn": linen(nn.Sequential([nn.Conv(5, (3, 3), strides=2), nn.relu, nn.ConvTranspose(2, (3, 3))]), IMAGE),
    "linen attention": linen(Attention(), TOKENS),
    "linen optimized lstm": linen(nn.RNN(nn.OptimizedLSTMCell(5)), SEQUENCE),
    "linen conv lstm": linen(nn.RNN(nn.ConvLSTMCell(2, (3, 3))), array(BATCH, 2, 4, 4, 1)),
    "linen scanned blocks": linen(ScannedBlocks(), SEQUENCE),
    "nnx mlp": of_nnx(lambda r: nnx.Sequential(nnx.Linear(4, 5, rngs=r), nnx.relu, nnx.Linear(5, 2, rngs=r)), VECTOR),
    "equinox conv": of_equinox(lambda key: eqx.nn.Conv2d(4, 5, 3, key=key), IMAGE.swapaxes(1, 3)),
    "equinox gru": of_equinox(lambda key: eqx.nn.GRUCell(4, 5, key=key), SEQUENCE, scanned_cell),
    "haiku mlp": of_haiku(lambda x: hk.nets.MLP([5, 2])(x), VECTOR),
}

CASES = PLAIN | FRAMEWORKS
PLANNED = CASES | PARTS
