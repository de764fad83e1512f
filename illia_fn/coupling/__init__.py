"""f(x, w) under noise: couplings of the weight noise across the examples of a batch, for any unmodified model.

If log p(y | x, w) = sum_i log p(y_i | x_i, w), the expectation of the data term over w ~ q sees, for each example, only
the law of the weights that this example meets. So the noise may be coupled across the examples in any way, as long as
within one example the joint law of all that reads the weights is that of q. One draw for the whole batch is the
coupling of highest variance: its noise does not average out over the batch. The same holds across the samples of an
example, and so their noise is spread evenly over its law (`_latin_hypercube`).

    apply_fn --_model--> jaxpr of one example --_plan--> a strategy for each leaf --_noise--> noise of all examples
                                                                                  --_interpreter--> outputs

The interpreter knows what an operation does with a weight from three tables: LAYOUT (and AFFINE), LINEAR, RECURSION.
"""

from illia_fn.coupling._explain import Explanation as Explanation
from illia_fn.coupling._explain import explain_coupling as explain_coupling
from illia_fn.coupling._plan import Coupling as Coupling
from illia_fn.coupling._plan import LeafPlan as LeafPlan
from illia_fn.coupling._separable import check_separable as check_separable
from illia_fn.coupling._transform import ChunkSize as ChunkSize
from illia_fn.coupling._transform import check_coupling as check_coupling
from illia_fn.coupling._transform import coupled_expectation as coupled_expectation
from illia_fn.coupling._transform import decorrelate as decorrelate
