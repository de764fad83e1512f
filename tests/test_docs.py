"""The README's code runs, and its training loop is the demo's."""

import ast
import inspect
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.promotes
def test_code_blocks_run_in_order_and_print_what_is_shown(capsys):
    assert len(BLOCKS) >= 8
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
    printed = capsys.readouterr().out
    (table,) = re.findall(r"```text\n(.*?)```", README.read_text(), re.DOTALL)
    assert table in printed


def test_the_loop_is_the_one_the_demo_runs():
    from illia_fn.__main__ import fit

    assert inspect.getsource(fit) in BLOCKS[0]


def public_names(module):
    """What the module defines or re-exports under its own name."""
    for alias in [alias for node in ast.parse(inspect.getsource(module)).body for alias in getattr(node, "names", ())]:
        if alias.asname == alias.name:
            yield alias.asname, getattr(module, alias.name)
    for name, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
            yield name, value


def test_every_public_name_is_documented_with_an_example():
    import illia_fn

    modules = [illia_fn, *[value for _, value in public_names(illia_fn) if inspect.ismodule(value)]]
    names = [(name, value) for module in modules for name, value in public_names(module)]
    assert len(names) > 70
    for name, value in names:
        doc = inspect.getdoc(value)
        assert doc, name
        is_record = inspect.isclass(value) and (hasattr(value, "_fields") or inspect.isabstract(value))
        assert ">>>" in doc or is_record or inspect.ismodule(value), name
