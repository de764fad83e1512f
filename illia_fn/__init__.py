"""Variational inference for any JAX model, as small stateless functions on pytrees of parameters.

The posterior of a slope, four points with unit noise, where the exact answer is 1.93 +- 0.26:

>>> import illia_fn, jax, optax, jax.numpy as jnp
>>> x, y = jnp.arange(4.0), jnp.array([0.1, 2.1, 4.1, 6.2])
>>> q = illia_fn.mean_field({"slope": jnp.array(0.0)}, scale=0.1)
>>> def loss(q, key):
...     apply_fn = lambda params, x: params["slope"] * x
...     return illia_fn.elbo_loss(apply_fn, q, x, y, key, 64, num_data=4, prior=illia_fn.Normal(0.0, 1.0))
>>> optimizer = optax.adam(0.03)
>>> def step(state, key):
...     q, opt_state = state
...     updates, opt_state = optimizer.update(jax.grad(loss)(q, key), opt_state)
...     return (optax.apply_updates(q, updates), opt_state), ()
>>> (q, _), _ = jax.lax.scan(step, (q, optimizer.init(q)), jax.random.split(jax.random.key(0), 500))
>>> print(f"{q['slope'].loc:.1f} +- {q['slope'].stddev:.1f}")
1.9 +- 0.3

.. include:: ../README.md
"""

import importlib
from typing import TYPE_CHECKING, Any

from illia_fn import diagnostics as diagnostics
from illia_fn import frameworks as frameworks
from illia_fn import optim as optim
from illia_fn import priors as priors
from illia_fn import schedules as schedules
from illia_fn.algebra import moment_match as moment_match
from illia_fn.algebra import product as product
from illia_fn.algebra import tempered as tempered
from illia_fn.coupling import check_separable as check_separable
from illia_fn.coupling import decorrelate as decorrelate
from illia_fn.coupling import explain_coupling as explain_coupling
from illia_fn.coupling import explain_linearity as explain_linearity
from illia_fn.diagnostics import check_setup as check_setup
from illia_fn.diagnostics import diagnose as diagnose
from illia_fn.diagnostics import prune as prune
from illia_fn.diagnostics import pruning_curve as pruning_curve
from illia_fn.diagnostics import simulation_based_calibration as simulation_based_calibration
from illia_fn.diagnostics import summary as summary
from illia_fn.engine import average_state as average_state
from illia_fn.engine import expectation as expectation
from illia_fn.kl import kl_divergence as kl_divergence
from illia_fn.kl import kl_is_exact as kl_is_exact
from illia_fn.kl import kl_loss as kl_loss
from illia_fn.kl import kl_tree as kl_tree
from illia_fn.kl import register_kl as register_kl
from illia_fn.likelihoods import Law as Law
from illia_fn.likelihoods import asymmetric_laplace_nll as asymmetric_laplace_nll
from illia_fn.likelihoods import bernoulli_nll as bernoulli_nll
from illia_fn.likelihoods import categorical_nll as categorical_nll
from illia_fn.likelihoods import gaussian_nll as gaussian_nll
from illia_fn.likelihoods import laplace_nll as laplace_nll
from illia_fn.likelihoods import mixture_density_nll as mixture_density_nll
from illia_fn.likelihoods import negative_binomial_nll as negative_binomial_nll
from illia_fn.likelihoods import ordinal_nll as ordinal_nll
from illia_fn.likelihoods import poisson_nll as poisson_nll
from illia_fn.likelihoods import register_law as register_law
from illia_fn.likelihoods import student_t_nll as student_t_nll
from illia_fn.likelihoods import von_mises_nll as von_mises_nll
from illia_fn.objectives import ELBOTerms as ELBOTerms
from illia_fn.objectives import analytic_elbo_loss as analytic_elbo_loss
from illia_fn.objectives import cubo_loss as cubo_loss
from illia_fn.objectives import divergences as divergences
from illia_fn.objectives import elbo_loss as elbo_loss
from illia_fn.objectives import f_divergence_loss as f_divergence_loss
from illia_fn.objectives import iwae_loss as iwae_loss
from illia_fn.objectives import pac_bayes as pac_bayes
from illia_fn.objectives import pac_bayes_certificate as pac_bayes_certificate
from illia_fn.objectives import pac_bayes_loss as pac_bayes_loss
from illia_fn.objectives import predictive_loss as predictive_loss
from illia_fn.objectives import renyi_loss as renyi_loss
from illia_fn.optim import labels as labels
from illia_fn.optim import laplace as laplace
from illia_fn.optim import natural_gradient as natural_gradient
from illia_fn.optim import slow_scales as slow_scales
from illia_fn.posteriors import Eigenbasis as Eigenbasis
from illia_fn.posteriors import ForeignPosterior as ForeignPosterior
from illia_fn.posteriors import FullCovariance as FullCovariance
from illia_fn.posteriors import Gaussian as Gaussian
from illia_fn.posteriors import KTied as KTied
from illia_fn.posteriors import LowRank as LowRank
from illia_fn.posteriors import MatrixNormal as MatrixNormal
from illia_fn.posteriors import Mixture as Mixture
from illia_fn.posteriors import Posterior as Posterior
from illia_fn.posteriors import by_path as by_path
from illia_fn.posteriors import covariance as covariance
from illia_fn.posteriors import eigenbasis as eigenbasis
from illia_fn.posteriors import from_distribution as from_distribution
from illia_fn.posteriors import frozen_pytree as frozen_pytree
from illia_fn.posteriors import full_covariance as full_covariance
from illia_fn.posteriors import is_posterior as is_posterior
from illia_fn.posteriors import k_tied as k_tied
from illia_fn.posteriors import log_prob as log_prob
from illia_fn.posteriors import low_rank as low_rank
from illia_fn.posteriors import matrix_normal as matrix_normal
from illia_fn.posteriors import mean as mean
from illia_fn.posteriors import mean_field as mean_field
from illia_fn.posteriors import mixture as mixture
from illia_fn.posteriors import num_params as num_params
from illia_fn.posteriors import posterior_tree as posterior_tree
from illia_fn.posteriors import rank_one as rank_one
from illia_fn.posteriors import rank_one_weights as rank_one_weights
from illia_fn.posteriors import sample as sample
from illia_fn.posteriors import stddev as stddev
from illia_fn.predictions import ClassSummary as ClassSummary
from illia_fn.predictions import Interval as Interval
from illia_fn.predictions import PredictiveMoments as PredictiveMoments
from illia_fn.predictions import central_interval as central_interval
from illia_fn.predictions import class_probs as class_probs
from illia_fn.predictions import class_summary as class_summary
from illia_fn.predictions import highest_density_interval as highest_density_interval
from illia_fn.predictions import joint_predictive_log_prob as joint_predictive_log_prob
from illia_fn.predictions import linearise as linearise
from illia_fn.predictions import metrics as metrics
from illia_fn.predictions import pointwise_log_prob as pointwise_log_prob
from illia_fn.predictions import predict as predict
from illia_fn.predictions import predictive_draws as predictive_draws
from illia_fn.predictions import predictive_log_prob as predictive_log_prob
from illia_fn.predictions import predictive_moments as predictive_moments
from illia_fn.predictions import propagate_moments as propagate_moments
from illia_fn.predictions import quantiles as quantiles
from illia_fn.priors import Normal as Normal

if TYPE_CHECKING:
    from illia_fn import plots as plots


def __getattr__(name: str) -> Any:
    if name == "plots":  # it takes matplotlib, so it is imported only where it is used
        return importlib.import_module("illia_fn.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
