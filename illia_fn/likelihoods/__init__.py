"""-log p(y | f): negative log-likelihoods per example, in nats, constants included.

.. include:: README.md
"""

import illia_fn.likelihoods._laws  # noqa: F401  it fills the table
from illia_fn.likelihoods.classes import bernoulli_nll as bernoulli_nll
from illia_fn.likelihoods.classes import categorical_nll as categorical_nll
from illia_fn.likelihoods.classes import ordinal_nll as ordinal_nll
from illia_fn.likelihoods.continuous import asymmetric_laplace_nll as asymmetric_laplace_nll
from illia_fn.likelihoods.continuous import gaussian_nll as gaussian_nll
from illia_fn.likelihoods.continuous import laplace_nll as laplace_nll
from illia_fn.likelihoods.continuous import mixture_density_nll as mixture_density_nll
from illia_fn.likelihoods.continuous import student_t_nll as student_t_nll
from illia_fn.likelihoods.continuous import von_mises_nll as von_mises_nll
from illia_fn.likelihoods.counts import negative_binomial_nll as negative_binomial_nll
from illia_fn.likelihoods.counts import poisson_nll as poisson_nll
from illia_fn.likelihoods.table import Law as Law
from illia_fn.likelihoods.table import register_law as register_law
