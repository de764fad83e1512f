"""Parts of `python -m illia_fn`: the data it learns from, the networks, and the report on them."""
