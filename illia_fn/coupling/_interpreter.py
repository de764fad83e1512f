"""The jaxpr of a model, evaluated on one example, with views in the place of weights."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from illia_fn._base.jaxprs import bind
from illia_fn._base.sharding import own_mesh
from illia_fn.coupling._concatenation import concatenated, expanded, is_part, probed
from illia_fn.coupling._context import Context, Place, arrays, concrete
from illia_fn.coupling._factors import are_factors, count, product
from illia_fn.coupling._layout import AFFINE, LAYOUT
from illia_fn.coupling._linear import LINEAR, flipout, moments, movable, owner, separable
from illia_fn.coupling._moments import Moments, added, in_units, scaled, square, total
from illia_fn.coupling._recursion import RECURSION
from illia_fn.coupling._values import PerExample, View, along

ELEMENTWISE = {"add", "add_any", "atan2", "div", "max", "min", "mul", "pow", "select_n", "sub"}
CONCATENATES = {"concatenate", "stack"}
SUMS = {"add", "add_any", "sub"}


def evaluate(ctx: Context, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, each an array, `PerExample`, `Moments` or a `View`."""
    values, count = {}, Counter(atom for eqn in jaxpr.eqns for atom in eqn.invars if not isinstance(atom, Literal))
    count.update(atom for atom in jaxpr.outvars if not isinstance(atom, Literal))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    def write(variables: Sequence[Any], results: Sequence[Any]) -> None:
        for variable, value in zip(variables, results, strict=True):
            # What is read more than once must be the same at each reading.
            drawn = isinstance(value, Moments) and count[variable] != 1
            values[variable] = ctx.draw(value) if drawn else value

    write([*jaxpr.constvars, *jaxpr.invars], [*consts, *args])
    mesh = jax.sharding.get_abstract_mesh()
    for index, eqn in enumerate(jaxpr.eqns):
        with eqn.ctx.manager, or_on(mesh):
            write(eqn.outvars, _equation(ctx.at(index), eqn, [read(atom) for atom in eqn.invars]))
    return [read(atom) for atom in jaxpr.outvars]


def or_on(mesh: Any) -> Any:
    """The mesh of an equation, or this one if it comes from a trace where there was none, as that of a call may."""
    own = jax.sharding.get_abstract_mesh()
    return jax.sharding.use_abstract_mesh(mesh if own.empty else own)


def _equation(ctx: Context, eqn: Any, operands: list[Any]) -> Sequence[Any]:
    """The outputs of one equation: by the first table that has a rule for it."""
    name = eqn.primitive.name
    symbolic = [index for index, value in enumerate(operands) if isinstance(value, (View, Moments))]
    views = [index for index in symbolic if isinstance(operands[index], View)]
    results = None
    if name in RECURSION and (views or any(map(_is_on_mesh, operands))):  # its types know no mesh
        return RECURSION[name](evaluate, ctx, eqn, operands)
    if name == "mul" and len(views) == 2 and are_factors(ctx, *operands):
        return [product(*operands, eqn.outvars[0].aval)]
    if name == "mul" and len(views) == 2 and ctx.uses is not None and _are_apart(*operands):
        # the longer moves, and the other is the same for all examples
        fixed = min(views, key=lambda index: count(operands[index]))
        operands[fixed] = concrete(ctx, operands[fixed : fixed + 1], name)[0]
        symbolic = views = [1 - fixed]
    if len(symbolic) == 1:
        results = _laid_out(eqn, symbolic[0], operands)
    if results is None and views and name in CONCATENATES and not _meets_data(operands):
        results = _concatenate(ctx, eqn, operands)
    if results is None and symbolic and name in SUMS and _meets_data(operands):
        results = _sum(ctx, eqn, operands)
    if results is None and len(views) == 1 and name in LINEAR:
        results = _linear(ctx, eqn, views[0], operands)
    return _bind(ctx, eqn, operands) if results is None else results


def _are_apart(one: View, other: View) -> bool:
    """Whether they are of different posteriors."""
    return one.leaf != other.leaf and not one.directions.keys() & other.directions.keys()


def _is_on_mesh(value: Any) -> bool:
    """Whether it is sharded along an explicit axis of a mesh."""
    return isinstance(value, PerExample) and bool(jax.typeof(value.value).sharding.mesh.explicit_axes)


def _meets_data(operands: Sequence[Any]) -> bool:
    return any(isinstance(value, (PerExample, Moments)) for value in operands)


def _bind(ctx: Context, eqn: Any, operands: list[Any]) -> list[Any]:
    """The equation as it is."""
    is_elementwise = _meets_data(operands) and eqn.primitive.name in ELEMENTWISE
    meets = eqn.outvars[0].aval.size if is_elementwise else 0
    if eqn.primitive.name in CONCATENATES:  # with the data itself, such as a class token
        meets = sum(arrays([value])[0].size for value in operands if isinstance(value, PerExample))
    known = concrete(ctx, operands, eqn.primitive.name, meets)
    outputs = bind(eqn, arrays(known))
    return list(map(PerExample, outputs)) if any(isinstance(value, PerExample) for value in known) else outputs


def _laid_out(eqn: Any, position: int, operands: list[Any]) -> list[Any] | None:
    """A view, or moments, moved or mapped one by one; None if that is not what the equation does."""
    name, value = eqn.primitive.name, operands[position]
    others = [operand for index, operand in enumerate(operands) if index != position]
    if any(isinstance(other, PerExample) for other in others):
        return None
    outputs = [variable.aval for variable in eqn.outvars]
    if name in LAYOUT and position == 0:
        params = {key: value for key, value in eqn.params.items() if key != "sharding"}
        if isinstance(value, View):
            return value.laid_out(lambda x, full: LAYOUT[name](x, full, *others, **params), outputs)
        if len(outputs) == 1 and outputs[0].size == value.mean.size:  # a copy would be drawn apart from its original
            with own_mesh(value.mean):  # which this equation may be the one to leave
                parts, unit = added(value.variances)
                variance = jnp.broadcast_to(total(parts), value.mean.shape)
            mean, variance = (eqn.primitive.bind(x, *others, **eqn.params) for x in (value.mean, variance))
            unit = LAYOUT[name](unit, value.mean.shape, *others, **params)
            owners = tuple((leaf, LAYOUT[name](x, value.mean.shape, *others, **params)) for leaf, x in value.owners)
            return [Moments(mean, (in_units(variance, unit),), value.site, owners)]
    if name not in AFFINE or not jnp.issubdtype(outputs[0].dtype, jnp.floating) or (name == "div" and position == 1):
        return None
    if isinstance(value, View):
        return [value.mapped(AFFINE[name], position, others, outputs[0])]
    if name in SUMS or outputs[0].size != value.mean.size:
        return None
    mean = eqn.primitive.bind(
        *[value.mean if index == position else x for index, x in enumerate(operands)], **eqn.params
    )
    return [value._replace(mean=mean, variances=(scaled(value.variances, name, others),))]


def _linear(ctx: Context, eqn: Any, position: int, operands: list[Any]) -> list[Any] | None:
    """A weight meets data in an operation that is linear in it."""
    name, view = eqn.primitive.name, operands[position]
    others = concrete(ctx, [None if index == position else value for index, value in enumerate(operands)])
    linear = LINEAR[name](view, position, arrays(others), eqn)
    if linear is None:
        return None
    linear = linear._replace(data=_fenced(linear.data)) if ctx.fenced else linear
    if ctx.uses is not None:
        reads = view.copies * linear.reads
        # of an element that stands in several places, or in a product that meets data later, an output may have two
        thin = math.prod(np.broadcast_shapes(*[at.shape for at in view.signs.values()]))
        is_repeated = thin < math.prod(view.shape) or view.copies > ctx.rounds
        if reads > 1 and (is_repeated or not any(isinstance(value, PerExample) for value in others)):
            reads = math.inf
        use: dict[str, Any] = {"reads": reads, "movable": frozenset(movable(linear, view))}
        use["is_row"] = eqn.outvars[0].aval.size == math.prod(view.shape[axis] for axis in linear.free)
        ctx.note(position, view, name, draws_output=True, is_linear=True, separable=separable(linear, view), **use)
        return [PerExample(linear.apply(linear.data, view.dense(view.mean)))]
    if view.dev is None or view.strategy == "flipout":
        return [PerExample(flipout(linear, view))]
    mean, variance = moments(linear, view)
    return [Moments(mean, (variance,), ctx.path, owner(view, linear.to_output, mean.ndim))]


def _concatenate(ctx: Context, eqn: Any, operands: list[Any]) -> list[Any]:
    """Weights that are one from here on."""
    axis, output = eqn.params.get("dimension", eqn.params.get("axis")), eqn.outvars[0].aval
    if eqn.primitive.name == "stack":
        operands = [expanded(value, axis) for value in operands]
    parts = {position: value for position, value in enumerate(operands) if is_part(value)}
    if ctx.uses is None or not parts:  # what moves along directions alone has no signs along axes
        index = ctx.wholes[ctx.path].index if parts else None
        own = {} if index is None else ctx.signs.get(index, {})
        signs = {at: along(sign, at, len(output.shape)) for at, sign in own.items()}
        return [concatenated(index, operands, axis, output, signs)]
    whole, view = probed(ctx.wholes.values(), operands, axis, output)
    ctx.wholes[ctx.path] = whole
    for (position, value), part in zip(parts.items(), whole.parts, strict=True):
        use: dict[str, Any] = {"part": Place(whole.index, part.start, part.stands_once)}
        use |= {"reads": value.copies, "movable": frozenset(), "draws_output": False}
        ctx.note(position, value, eqn.primitive.name, **use)
    return [view]


def _fenced(x: jax.Array) -> jax.Array:
    """`x`, with a select that is there in its gradient as well.

    Two gradients add up in the data. In the body of a loop, XLA's CPU backend fuses that sum with the gradient of a
    max-pooling before it into one call of a library, and gets it wrong (seen with jax 0.10); it does not across this.
    """
    return jnp.where(jnp.isnan(x), jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _sum(ctx: Context, eqn: Any, operands: list[Any]) -> list[Any] | None:
    """The law of a sum with independent Gaussians, such as a layer's output and its bias."""
    output, name = eqn.outvars[0].aval, eqn.primitive.name
    mean, variances, owners = [], [], ()
    for position, value in enumerate(operands):
        if isinstance(value, View) and ctx.uses is not None:
            reads = value.copies * max(1, output.size // math.prod(value.shape))
            ctx.note(position, value, name, reads=reads, movable=frozenset(), draws_output=True, meets=output.size)
            mean.append(value.dense(value.mean))
        elif isinstance(value, View) and value.dev is not None and value.strategy == "local_reparam":
            mean.append(value.centre())
            dev = value.dense(value.dev, value.dev.dtype)
            variances.append(square(dev.reshape((1,) * (output.ndim - dev.ndim) + dev.shape)))
            places = {axis: axis + output.ndim - dev.ndim for axis in range(dev.ndim)}
            owners += owner(value, places, output.ndim)
        elif isinstance(value, Moments) and value.mean.size == output.size:
            mean.append(value.mean)
            variances += value.variances
            owners += value.owners
        else:
            mean += arrays(concrete(ctx, [value]))
    total_mean = eqn.primitive.bind(*mean, **eqn.params)
    if ctx.uses is not None or not variances:
        return [PerExample(total_mean)]
    return [Moments(total_mean, tuple(variances), ctx.path, owners)]
