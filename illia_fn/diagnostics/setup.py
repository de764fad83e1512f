"""A check that one runs once, before the loop: what would go wrong in silence, each with its remedy."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from illia_fn._base.checks import split_aux
from illia_fn._base.numerics import total
from illia_fn._base.trees import PyTree, leaves_with_path
from illia_fn.diagnostics._findings import Finding, of_data, of_outputs, of_posterior
from illia_fn.engine._eager import compiled_once
from illia_fn.engine._randomness import check_fresh_noise
from illia_fn.kl._priors import blocks_of, is_joint, log_prior_of_node
from illia_fn.kl.loss import Pair, kl_pairs
from illia_fn.objectives._data import DataTerm, LossFn
from illia_fn.objectives.elbo import elbo_loss
from illia_fn.posteriors.posterior import check_nodes, is_posterior, mean
from illia_fn.priors.normal import Normal


class SetupReport(NamedTuple):
    """The findings, and the numbers they rest on; prints as a list.

    Attributes:
        findings: empty if nothing was found.
        nll: mean negative log-likelihood per example at the mean of q, in nats; nan if it could not be computed.
        kl: KL(q || prior) / N at the start, in nats per example; nan without num_data.
        cost_of_means: the part of it that the means cost whatever the scales, [log p(middle of p) - log p(means)] / N.
    """

    findings: list[Finding]
    nll: float
    kl: float
    cost_of_means: float

    def __str__(self) -> str:
        of_kl = f"KL {self.kl:.3g}, of which the means {self.cost_of_means:.3g}"
        found = [f"{number}. {finding}" for number, finding in enumerate(self.findings, 1)] or ["nothing was found"]
        return "\n".join([f"nll {self.nll:.3g}, {of_kl} (nats per example)", *found])


def check_setup(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Any,
    y: Any,
    key: jax.Array,
    *,
    loss_fn: LossFn | None = None,
    prior: PyTree = Normal(0.0, 1.0),
    num_data: int | None = None,
    kl_weight: float = 1.0,
    weights: ArrayLike | None = None,
    needs_key: bool = False,
    has_aux: bool = False,
    **options: Any,
) -> SetupReport:
    """Look for what makes training fail in silence: call it once, before the loop, with the arguments of `elbo_loss`.

    It asks whether

    - outputs, targets and the loss go together, labels are classes, and one-hot labels are not taken for numbers;
    - the likelihood of unit scale, which is the default of floating-point targets, suits their scale;
    - the inputs have a scale that networks learn from;
    - random numbers of the model are fresh (dropout), and no statistic of it is Bayesian;
    - the prior has a density where q has, and the KL of the means is one that the data can pay for;
    - the initial noise leaves something of the weights;
    - the loss and its gradient are finite, and a step returns q with the types that it came with, so that it compiles
      once.

    Args:
        apply_fn, params, x, y, key: as in `elbo_loss`, known now: not under jit. A batch of real data.
        loss_fn, prior, num_data, kl_weight, weights, needs_key, has_aux: as in `elbo_loss`.
        **options: its others, such as `num_samples` and `coupling`, of the step that is tried. `return_terms` changes
            nothing in it.

    Returns:
        A `SetupReport`: print it. What the objectives refuse is a finding here.

    >>> from illia_fn import mean_field
    >>> x, y = jnp.linspace(-1.0, 1.0, 20)[:, None], jnp.arange(20) % 2
    >>> q = mean_field({"w": jnp.ones((1, 2))})
    >>> print(check_setup(lambda w, x: x @ w["w"], q, x, y, jax.random.key(0), num_data=20))
    nll 0.693, KL 0.3, of which the means 0.05 (nats per example)
    nothing was found
    """
    call: dict[str, Any] = {"loss_fn": loss_fn, "weights": weights, "needs_key": needs_key, "has_aux": has_aux}
    if unknown := set(options) - set(inspect.signature(elbo_loss).parameters):
        raise TypeError(f"check_setup: elbo_loss has no {', '.join(sorted(unknown))}. Pass the arguments of elbo_loss.")
    options.pop("return_terms", None)
    data = DataTerm("check_setup", apply_fn, x, y, **call)
    keys = [key] if needs_key else []
    if findings := _refused(lambda: check_nodes("check_setup", params)):
        return SetupReport(findings, np.nan, np.nan, np.nan)
    findings = [*of_data(data), *of_posterior(params)]
    findings += _refused(lambda: check_fresh_noise("check_setup", apply_fn, params, x, *(keys or [None])))

    def at_mean() -> Any:  # of arrays that it closes over, as what is no array of them stays as it is
        return split_aux("check_setup", "apply_fn", apply_fn(mean(params), x, *keys), has_aux=has_aux)[0]

    outputs, refused = _tried(lambda: compiled_once(at_mean))
    nll = None
    if not refused:
        nll, refused = _tried(lambda: data.mean(data.losses_of_outputs(outputs)))
    findings += refused or of_outputs(data, outputs)
    costs, refused = _tried(lambda: _costs(params, prior, key, num_data))
    findings += refused
    kl, cost_of_means = costs if costs is not None else (np.nan, np.nan)
    findings += _of_the_prior(data, nll, kl_weight * cost_of_means, num_data)
    if not any(isinstance(finding, _Refusal) for finding in findings):
        call |= {"prior": prior, "num_data": num_data, "kl_weight": kl_weight, **options}
        findings += _of_a_step(lambda q: elbo_loss(apply_fn, q, x, y, key, **call), params, has_aux=has_aux)
    unique = list(dict.fromkeys(Finding(*finding) for finding in findings))
    return SetupReport(unique, np.nan if nll is None else float(nll), float(kl), float(cost_of_means))


class _Refusal(Finding):
    """What an objective refuses, with its words."""


def _tried(f: Callable[[], Any]) -> tuple[Any, list[Finding]]:
    try:
        return f(), []
    except (ValueError, TypeError) as error:
        return None, [_Refusal(*_problem_and_remedy(str(error)))]


def _problem_and_remedy(message: str) -> tuple[str, str]:
    first, _, rest = message.partition(". ")
    return first.rstrip("."), rest or "If the model takes a key, pass needs_key=True; if it returns aux, has_aux=True."


def _refused(f: Callable[[], Any]) -> list[Finding]:
    return _tried(f)[1]


def _costs(params: PyTree, prior: PyTree, key: jax.Array, num_data: int | None) -> tuple[float, float]:
    """KL(q || prior) / N, and the part of it that the means cost whatever the scales."""
    pairs = kl_pairs("check_setup", params, prior, key)

    def of_nodes(nodes: list[PyTree]) -> tuple[jax.Array, jax.Array]:
        moved = [pair._replace(q=node) for pair, node in zip(pairs, nodes, strict=True)]
        return total([pair.kl(8) for pair in moved]), total([_cost_of_means(pair) for pair in moved])

    kl, cost = map(float, compiled_once(of_nodes, [pair.q for pair in pairs]))
    return (kl / num_data, cost / num_data) if num_data else (np.nan, np.nan)


def _cost_of_means(pair: Pair) -> jax.Array:
    """log p(middle) - log p(E_q[w]): of a Normal (m_q - m_p)^2 / (2 s_p^2)."""
    means = pair.q.mean
    densities = [log_prior_of_node(pair.name, pair.p, w) for w in (_middle(pair.name, pair.p, means), means)]
    return jnp.maximum(densities[0] - densities[1], 0.0)


def _middle(caller: str, p: PyTree, w: PyTree) -> PyTree:
    """The mean of each posterior that is a prior, the location of each other prior, or 0: in the shapes of w."""
    leaves = []
    for prior, arrays, _ in blocks_of(p, w, caller):
        if is_joint(prior):
            leaves += jax.tree.leaves(prior.mean)
        else:
            middle = prior.mean if is_posterior(prior) else getattr(prior, "loc", 0.0)
            leaves.append(jnp.broadcast_to(middle, np.shape(arrays[0])))
    return jax.tree.structure(w).unflatten(leaves)


def _of_the_prior(data: DataTerm, nll: Any, cost: float, num_data: int | None) -> Iterator[Finding]:
    if num_data is None:
        yield Finding(
            "there is no num_data, so the KL has a weight of 1e-3 per parameter, and the loss is no bound",
            "Pass num_data=len(x_train).",
        )
        return
    worth = _worth(data, nll)
    if worth is not None and np.isfinite(worth) and cost > 0.25 * max(worth, 0.1):
        yield Finding(
            f"the prior asks {cost:.3g} nats per example for the means as they are, and the targets have about "
            f"{worth:.3g} to tell: it may flatten the network",
            "Take a wider prior, one around a trained network (priors.centred(params, 0.1)), or a smaller kl_weight.",
        )


def _worth(data: DataTerm, nll: Any) -> float | None:
    """What a perfect network would gain on the best constant prediction, in nats per example, or about that."""
    if nll is None or data.loss_fn is not None:
        return None if nll is None else float(nll)
    y = np.asarray(jax.tree.leaves(data.y)[0])
    y = y if data.weights is None else y[np.asarray(data.weights) > 0]
    if y.dtype.kind in "iu":
        shares = np.unique(y, return_counts=True)[1] / y.size
        return float(-np.sum(shares * np.log(shares)) * (y.size / len(y)))
    return float(0.5 * np.sum(np.var(y.astype(np.float64), axis=0)))


def _of_a_step(loss: Callable[[PyTree], Any], params: PyTree, *, has_aux: bool) -> list[Finding]:
    def step(q: PyTree) -> Any:
        value, grads = jax.value_and_grad(loss, has_aux=has_aux, allow_int=True)(q)
        floats = jax.tree.map(lambda g, w: jnp.zeros_like(w) if g.dtype == jax.dtypes.float0 else g, grads, q)
        finite = jax.tree.map(lambda g: jnp.all(jnp.isfinite(g)), floats)
        return (value[0] if has_aux else value), finite, optax.apply_updates(q, floats)

    result, refused = _tried(lambda: compiled_once(step, params))
    if refused:
        return refused
    value, finite, after = result
    findings = []
    bad = [path for path, flag in leaves_with_path(finite) if not flag]
    if not np.isfinite(value) or bad:
        at = f"the gradient of params{bad[0]}" if bad else "the loss"
        findings.append(Finding(f"{at} is not finite", "Look at the inputs, the targets, and the domain of loss_fn."))
    for (path, old), new in zip(leaves_with_path(params), jax.tree.leaves(after), strict=True):
        types = [(jnp.result_type(w), getattr(w, "weak_type", isinstance(w, (int, float)))) for w in (old, new)]
        if types[0] != types[1]:
            findings.append(
                Finding(
                    f"params{path} is {_type(*types[0])} before a step and {_type(*types[1])} after it, so a step "
                    "compiles twice",
                    f"Make it an array: jnp.asarray(w, jnp.{types[1][0]}).",
                )
            )
    return findings


def _type(dtype: Any, weak: bool) -> str:  # noqa: FBT001
    return f"a Python number ({dtype})" if weak else f"of {dtype}"
