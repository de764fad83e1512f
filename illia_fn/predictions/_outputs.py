"""What every summary takes: the outputs of S networks for B examples."""

from typing import Any

import jax
import jax.numpy as jnp

from illia_fn.predictions.linearised import OutputLaw


def check_outputs(caller: str, outputs: Any) -> tuple[int, int]:
    """(S, B): every leaf has a leading axis of networks, and then one of examples, or is one number per network."""
    if isinstance(outputs, OutputLaw):
        raise ValueError(
            f"{caller}: outputs must be those of S networks, got an OutputLaw, which is a distribution: "
            "its class probabilities are predictions.softmax_of_gaussian(law.mean, law.covariance), its moments "
            "law.mean and law.variance, without the noise of y. For all else draw from it: predict(..., "
            "linearised=True)."
        )
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(outputs)]
    counts = {shape[:1] for shape in shapes}
    sizes = {shape[1] for shape in shapes if len(shape) > 1}
    if len(counts) != 1 or counts <= {(), (0,)} or len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            f"{caller}: outputs must be those of S networks for B examples, as illia_fn.predict returns them, every "
            f"leaf of shape (S, B, ...) or one number per network, (S,), got {', '.join(map(str, shapes)) or 'none'}. "
            "Of one network pass jax.tree.map(lambda leaf: leaf[None], outputs)."
        )
    return counts.pop()[0], sizes.pop()


def check_examples(caller: str, outputs: Any, y: Any) -> None:
    """The targets are those of the B examples."""
    _, batch_size = check_outputs(caller, outputs)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(y)]
    if {shape[:1] for shape in shapes} != {(batch_size,)}:
        raise ValueError(
            f"{caller}: targets y must have a leading axis of the B = {batch_size} examples of outputs, whose shapes "
            f"(S, B, ...) are {', '.join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(outputs))}, got y of shape "
            f"{', '.join(map(str, shapes)) or 'none'}. Outputs without an axis of networks are those of one: pass "
            "jax.tree.map(lambda leaf: leaf[None], outputs)."
        )
