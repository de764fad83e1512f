"""KL(q || p): a table of closed forms, and the loss made of it.

.. include:: README.md
"""

from illia_fn.kl import eigen, full, independent, laplace, log_gamma, lowrank, matrix, mixtures  # noqa: F401  # fill the table
from illia_fn.kl.loss import kl_is_exact as kl_is_exact
from illia_fn.kl.loss import kl_loss as kl_loss
from illia_fn.kl.loss import kl_tree as kl_tree
from illia_fn.kl.table import kl_divergence as kl_divergence
from illia_fn.kl.table import register_kl as register_kl
