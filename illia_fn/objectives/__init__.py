"""L(q): what to minimise.

.. include:: README.md
"""

from illia_fn.objectives import divergences as divergences
from illia_fn.objectives import pac_bayes as pac_bayes
from illia_fn.objectives._data import DataTerm as DataTerm
from illia_fn.objectives._draws import Draws as Draws
from illia_fn.objectives._regulariser import Regulariser as Regulariser
from illia_fn.objectives.analytic import analytic_elbo_loss as analytic_elbo_loss
from illia_fn.objectives.elbo import ELBOTerms as ELBOTerms
from illia_fn.objectives.elbo import elbo_loss as elbo_loss
from illia_fn.objectives.f_divergence import f_divergence_loss as f_divergence_loss
from illia_fn.objectives.importance import cubo_loss as cubo_loss
from illia_fn.objectives.importance import iwae_loss as iwae_loss
from illia_fn.objectives.importance import renyi_loss as renyi_loss
from illia_fn.objectives.pac_bayes import pac_bayes_certificate as pac_bayes_certificate
from illia_fn.objectives.pac_bayes import pac_bayes_loss as pac_bayes_loss
from illia_fn.objectives.predictive import predictive_loss as predictive_loss
