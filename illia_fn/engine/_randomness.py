"""Random numbers of a model whose keys are not its arguments: the same for all samples, steps, or examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, jaxprs_in_params

from illia_fn._base.trees import PyTree
from illia_fn.posteriors.posterior import mean

_DRAWS = ("random_bits", "random_gamma", "rng_bit_generator", "threefry2x32")
_CALLS = ("jit", "pjit", "closed_call", "checkpoint", "remat", "custom_jvp_call", "custom_vjp_call", "scan")


HINT = (
    "Pass needs_key=True and take a key as an argument, apply_fn(params, x, key), for all. In flax.nnx the keys of the "
    "constructor's Rngs are state of the model: illia_fn.frameworks.from_nnx reseeds all of its streams; or do so "
    "after nnx.merge, nnx.reseed(model, default=key, dropout=key)."
)


def check_fresh_noise(caller: str, apply_fn: Callable[..., Any], q: PyTree, x: PyTree, key: jax.Array | None) -> None:
    """Refuse a model that draws random numbers for the batch, such as dropout masks, from keys that never change.

    Random numbers that do not depend on the size of the batch, such as fixed random features, are the model's own.
    """
    leaves, structure = jax.tree.flatten((mean(q), x))
    is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]  # others, such as functions, may be there
    arrays = [leaf for leaf, flag in zip(leaves, is_array, strict=True) if flag]
    num_params = sum(is_array[: jax.tree.structure(mean(q)).num_leaves])
    keys = [] if key is None else [key]

    def draws_of_fixed_keys(change: Callable[[PyTree], PyTree]) -> list[tuple[int, ...]]:
        def apply(arrays: list[Any], *key: jax.Array) -> Any:
            given = iter(arrays)
            w, x = structure.unflatten(
                [next(given) if flag else leaf for leaf, flag in zip(leaves, is_array, strict=True)]
            )
            return apply_fn(w, change(x), *key)

        jaxpr = jax.make_jaxpr(apply)(arrays, *keys).jaxpr
        # draws from keys among the parameters are no fresh ones either
        draws, _ = _draws(jaxpr, [index >= num_params for index in range(len(jaxpr.invars))], 1)
        return sorted((draw.rounds, *draw.shape) for draw in draws if not draw.from_inputs)

    if not (shapes := draws_of_fixed_keys(lambda x: x)):
        return
    try:
        depend = draws_of_fixed_keys(_doubled) != shapes
    except Exception:  # it takes no other batch
        depend = any(jnp.shape(leaf)[:1] == shape[1:2] for leaf in jax.tree.leaves(x) for shape in shapes)
    if depend:
        raise ValueError(
            f"{caller}: apply_fn draws random numbers for the batch from a key that is not its argument, so that all "
            f"samples and steps would get the same ones. {HINT}"
        )


def _doubled(x: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]) if jnp.ndim(leaf) else leaf, x)


class Draw(NamedTuple):
    """A draw of random numbers: whether its keys come from the inputs, its shape, that for each key, and how often."""

    from_inputs: bool
    shape: tuple[int, ...]
    shape_of_key: tuple[int, ...]
    rounds: int


def random_shapes(jaxpr: Any, *, takes_key: bool) -> list[tuple[int, ...]]:
    """Shapes of all draws, which differ between a batch and one example if these share random numbers.

    Keys that come from the inputs are of the examples: then it is the shape for each key, and nothing at all if there
    is a key among the inputs, from which a batch may be drawn as it likes.
    """
    draws, _ = _draws(jaxpr, [True] * len(jaxpr.invars), 1)
    of_inputs = [] if takes_key else [draw.shape_of_key for draw in draws if draw.from_inputs]
    return sorted([*of_inputs, *((draw.rounds, *draw.shape) for draw in draws if not draw.from_inputs)])


def depends_on(jaxpr: Any, flags: list[bool]) -> list[bool]:
    """Which outputs of a jaxpr depend on the arguments that are flagged."""
    return _draws(jaxpr, flags, 1)[1]


def _draws(jaxpr: Any, from_inputs: list[bool], rounds: int) -> tuple[list[Draw], list[bool]]:
    """All draws, and which outputs come from the inputs, given which arguments of the jaxpr do."""
    known = {variable for variable, flag in zip(jaxpr.invars, from_inputs, strict=True) if flag}
    draws: list[Draw] = []

    def flags(atoms: Any) -> list[bool]:
        return [not isinstance(atom, Literal) and atom in known for atom in atoms]

    for eqn in jaxpr.eqns:
        operands, name = flags(eqn.invars), eqn.primitive.name
        outputs = [any(operands)] * len(eqn.outvars)
        if name in _DRAWS:
            shape = tuple(eqn.outvars[-1].aval.shape)
            draws.append(Draw(any(operands), shape, tuple(map(int, eqn.params.get("shape", shape))), rounds))
        for inner in jaxprs_in_params(eqn.params):
            of_ours = (len(inner.invars), len(inner.outvars)) == (len(operands), len(outputs))
            if name in _CALLS and of_ours:
                more, outputs = _of_call(eqn, inner, operands, rounds)
            else:
                more, _ = _draws(inner, [any(operands)] * len(inner.invars), rounds)
            draws += more
        known.update(variable for variable, flag in zip(eqn.outvars, outputs, strict=True) if flag)
    return draws, flags(jaxpr.outvars)


def _of_call(eqn: Any, inner: Any, operands: list[bool], rounds: int) -> tuple[list[Draw], list[bool]]:
    if eqn.primitive.name != "scan":
        return _draws(inner, operands, rounds)
    first, count = scan_counts(eqn.params)
    while True:
        draws, outputs = _draws(inner, operands, rounds * eqn.params["length"])
        carry = [old or new for old, new in zip(operands[first : first + count], outputs[:count], strict=True)]
        if carry == operands[first : first + count]:
            return draws, outputs
        operands = [*operands[:first], *carry, *operands[first + count :]]


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many constants a scan has, and how many values it carries."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # jax 0.12
    return len(consts), len(carry)
