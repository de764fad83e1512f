"""p(w): priors."""

from illia_fn.priors.normal import Normal as Normal
