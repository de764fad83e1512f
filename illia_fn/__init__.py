"""Variational inference for any JAX model, as small stateless functions on pytrees of parameters."""

from illia_fn import adapters as adapters
from illia_fn import metrics as metrics
from illia_fn.expectation import expectation as expectation
from illia_fn.kl import kl_divergence as kl_divergence
from illia_fn.kl import kl_loss as kl_loss
from illia_fn.kl import kl_tree as kl_tree
from illia_fn.kl import register_kl as register_kl
from illia_fn.likelihoods import gaussian_nll as gaussian_nll
from illia_fn.mean_field import mean_field as mean_field
from illia_fn.objectives import ELBOTerms as ELBOTerms
from illia_fn.objectives import elbo_loss as elbo_loss
from illia_fn.posteriors import Gaussian as Gaussian
from illia_fn.posteriors import Posterior as Posterior
from illia_fn.posteriors import is_posterior as is_posterior
from illia_fn.posteriors import log_prob as log_prob
from illia_fn.posteriors import mean as mean
from illia_fn.posteriors import num_params as num_params
from illia_fn.posteriors import sample as sample
from illia_fn.posteriors import stddev as stddev
from illia_fn.predict import predict as predict
from illia_fn.priors import Normal as Normal
