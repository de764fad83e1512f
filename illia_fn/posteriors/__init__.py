"""q: posterior nodes in the place of leaves or subtrees of the parameters, and functions on trees of them.

.. include:: README.md
.. include:: last_layer.md
"""

from illia_fn._base.trees import frozen_pytree as frozen_pytree
from illia_fn.posteriors.blocks import covariance as covariance
from illia_fn.posteriors.eigen import Eigenbasis as Eigenbasis
from illia_fn.posteriors.eigen import eigenbasis as eigenbasis
from illia_fn.posteriors.foreign import ForeignPosterior as ForeignPosterior
from illia_fn.posteriors.foreign import from_distribution as from_distribution
from illia_fn.posteriors.full import FullCovariance as FullCovariance
from illia_fn.posteriors.full import full_covariance as full_covariance
from illia_fn.posteriors.gaussian import Gaussian as Gaussian
from illia_fn.posteriors.gaussian import mean_field as mean_field
from illia_fn.posteriors.lowrank import LowRank as LowRank
from illia_fn.posteriors.lowrank import low_rank as low_rank
from illia_fn.posteriors.masks import by_path as by_path
from illia_fn.posteriors.matrix import MatrixNormal as MatrixNormal
from illia_fn.posteriors.matrix import matrix_normal as matrix_normal
from illia_fn.posteriors.mixtures import Mixture as Mixture
from illia_fn.posteriors.mixtures import mixture as mixture
from illia_fn.posteriors.multiplicative import rank_one as rank_one
from illia_fn.posteriors.multiplicative import rank_one_weights as rank_one_weights
from illia_fn.posteriors.patterns import posterior_tree as posterior_tree
from illia_fn.posteriors.posterior import Posterior as Posterior
from illia_fn.posteriors.posterior import is_posterior as is_posterior
from illia_fn.posteriors.posterior import log_prob as log_prob
from illia_fn.posteriors.posterior import mean as mean
from illia_fn.posteriors.posterior import num_params as num_params
from illia_fn.posteriors.posterior import sample as sample
from illia_fn.posteriors.posterior import stddev as stddev
from illia_fn.posteriors.tied import KTied as KTied
from illia_fn.posteriors.tied import k_tied as k_tied
