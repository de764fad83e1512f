"""Priors that are written in another way than those of the table of closed forms."""

from typing import Any

from illia_fn.priors._foreign import foreign_fields, normal_of
from illia_fn.priors._laplace import Laplace
from illia_fn.priors.bijections import Constrained


def in_known_form(p: Any) -> Any:
    """The same prior in the form that the table knows, or as it is: of numpyro, distrax and TFP, or constrained."""
    if isinstance(p, Constrained):
        return p.on_the_line() or p
    laplace = foreign_fields(p, "Laplace", "loc", "scale")
    return normal_of(p) or (Laplace(*laplace) if laplace is not None else p)
