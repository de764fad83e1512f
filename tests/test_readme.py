"""The README's code runs, and its training loop is the demo's."""

import ast
import inspect
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.promotes
def test_code_blocks_run_in_order():
    assert len(BLOCKS) >= 8
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)


def test_the_loop_is_the_one_the_demo_runs():
    from illia_fn.__main__ import fit

    assert inspect.getsource(fit) in BLOCKS[0]


def test_every_public_name_is_documented_with_an_example():
    import illia_fn

    for name in (
        alias.asname for node in ast.parse(inspect.getsource(illia_fn)).body for alias in getattr(node, "names", ())
    ):
        doc = inspect.getdoc(getattr(illia_fn, name))
        assert doc, name
        assert ">>>" in doc or name in {"Posterior", "ELBOTerms"} or inspect.ismodule(getattr(illia_fn, name)), name
