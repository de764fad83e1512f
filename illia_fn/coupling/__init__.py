"""f(x, w) under noise: couplings of the weight noise across the examples of a batch, for any unmodified model.

    apply_fn --_model--> jaxpr of one example --_plan--> a strategy for each leaf --_noise--> noise of all examples
                                                                                  --_interpreter--> outputs

`_joint` is about posteriors over numbers that are not independent. The interpreter knows what an operation does with a
weight from three tables: LAYOUT (and AFFINE), LINEAR, RECURSION. `_propagation` is another, which draws nothing: it
knows from tables of its own what an operation does with means and variances.

.. include:: README.md
"""

from illia_fn.coupling._explain import Explanation as Explanation
from illia_fn.coupling._explain import LinearityExplanation as LinearityExplanation
from illia_fn.coupling._explain import explain_coupling as explain_coupling
from illia_fn.coupling._explain import explain_linearity as explain_linearity
from illia_fn.coupling._linearity import LeafLinearity as LeafLinearity
from illia_fn.coupling._plan import LeafPlan as LeafPlan
from illia_fn.coupling._separable import check_separable as check_separable
from illia_fn.coupling._strategies import Coupling as Coupling
from illia_fn.coupling._transform import decorrelate as decorrelate
