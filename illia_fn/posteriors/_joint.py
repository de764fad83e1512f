"""What Gaussians over a subtree of parameters share."""

import abc

from illia_fn._base.trees import PyTree
from illia_fn.posteriors._factors import Marginals
from illia_fn.posteriors._flat import unravel
from illia_fn.posteriors.posterior import Posterior


class JointGaussian(Posterior):
    """A Gaussian around a field `loc`, an array or a subtree of arrays of P numbers together."""

    @property
    def mean(self) -> PyTree:
        return self.loc  # ty: ignore[missing-attribute]

    @property
    def stddev(self) -> PyTree:
        return unravel(self.marginals().scale, self.mean)

    @abc.abstractmethod
    def marginals(self) -> Marginals:
        """Each of the P numbers by itself."""
