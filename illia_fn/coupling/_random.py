"""Random numbers of a model whose keys are not those of the example, and would be the same for all of them."""

from typing import Any, NamedTuple

from jax.extend.core import Literal, jaxprs_in_params

from illia_fn.coupling._recursion import scan_counts

_DRAWS = ("random_bits", "random_gamma", "rng_bit_generator", "threefry2x32")
_CALLS = ("jit", "pjit", "closed_call", "checkpoint", "remat", "custom_jvp_call", "custom_vjp_call", "scan")


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
