"""KL(q || p): a table of closed forms, and the loss made of it.

.. include:: README.md
"""

from illia_fn.kl import laplace, log_gamma  # noqa: F401, which fill the table
from illia_fn.kl.loss import kl_loss as kl_loss
from illia_fn.kl.loss import kl_tree as kl_tree
from illia_fn.kl.table import kl_divergence as kl_divergence
from illia_fn.kl.table import register_kl as register_kl
