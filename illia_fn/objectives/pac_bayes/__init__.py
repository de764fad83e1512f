"""PAC-Bayes: bounds on the risk of networks that are drawn from q, on data they have not seen.

.. include:: README.md
"""

from illia_fn.objectives.pac_bayes._binary_kl import kl_inverse as kl_inverse
from illia_fn.objectives.pac_bayes.bounded_losses import bounded_cross_entropy as bounded_cross_entropy
from illia_fn.objectives.pac_bayes.bounded_losses import zero_one_loss as zero_one_loss
from illia_fn.objectives.pac_bayes.bounds import catoni_bound as catoni_bound
from illia_fn.objectives.pac_bayes.bounds import complexity as complexity
from illia_fn.objectives.pac_bayes.bounds import lambda_bound as lambda_bound
from illia_fn.objectives.pac_bayes.bounds import maurer_bound as maurer_bound
from illia_fn.objectives.pac_bayes.bounds import mcallester_bound as mcallester_bound
from illia_fn.objectives.pac_bayes.bounds import quadratic_bound as quadratic_bound
from illia_fn.objectives.pac_bayes.certificate import Certificate as Certificate
from illia_fn.objectives.pac_bayes.certificate import pac_bayes_certificate as pac_bayes_certificate
from illia_fn.objectives.pac_bayes.training import RiskTerms as RiskTerms
from illia_fn.objectives.pac_bayes.training import pac_bayes_loss as pac_bayes_loss
