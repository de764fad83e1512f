"""The house holds to its plan: imports run down, rooms are small, calls show what they take."""

import ast
import inspect
from pathlib import Path

import pytest

import illia_fn

ROOT = Path(illia_fn.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))
FLOORS = [
    ["_base"],
    ["priors", "likelihoods", "posteriors"],
    ["engine"],
    ["kl", "coupling"],
    ["algebra", "objectives", "predictions", "schedules"],
    ["diagnostics", "frameworks", "optim"],
    ["plots"],
    ["_demo"],
    ["__main__"],
]
FLOOR_OF = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}


def wing_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path):
    """What a module imports of this library, as dotted names under illia_fn."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "illia_fn":
            rest = node.module.split(".")[1:]
            yield from (rest,) if rest else ([alias.name] for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1:] for alias in node.names if alias.name.startswith("illia_fn"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down(path):
    wing = wing_of(path)
    if wing in ("__init__", "__main__", "_demo"):  # the front door, and users of it
        return
    for names in imported(path):
        assert names, f"{wing} imports the whole library"
        above = FLOOR_OF[names[0]] >= FLOOR_OF[wing] and names[0] != wing
        assert not above, f"{wing} imports {'.'.join(names)}, which does not lie below it"


def test_every_wing_has_its_floor():
    assert {wing_of(path) for path in MODULES} - {"__init__"} <= FLOOR_OF.keys()


def test_no_module_is_named_like_what_it_holds():
    for path in MODULES:
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert path.stem not in names or path.stem.startswith("_") or wing_of(path) == "_demo", path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_are_small(path):
    text = path.read_text()
    assert text.count("\n") < 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            doc = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
            assert node.end_lineno - node.lineno + 1 - doc < 50, node.name


OBJECTIVES = {name: f for name, f in vars(illia_fn).items() if name.endswith("_loss") and name != "kl_loss"}
THEIR_OWN = {"estimator", "num_data", "kl_weight", "loss_fn"}  # whose defaults may differ from those of elbo_loss


def test_an_objective_shows_every_keyword_and_its_default():
    assert len(OBJECTIVES) == 8
    shown = inspect.signature(illia_fn.elbo_loss).parameters
    for name, f in OBJECTIVES.items():
        parameters = inspect.signature(f).parameters
        assert list(parameters)[:6] == ["apply_fn", "params", "x", "y", "key", "num_samples"], name
        for keyword, parameter in parameters.items():
            assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL), name
            if list(parameters).index(keyword) >= 6:
                assert parameter.kind is parameter.KEYWORD_ONLY, (name, keyword)
                if keyword in shown and keyword not in THEIR_OWN and keyword != "prior":
                    assert parameter.default == shown[keyword].default, (name, keyword)
        prior = parameters["prior"].default
        assert (prior.loc, prior.scale) == (shown["prior"].default.loc, shown["prior"].default.scale)
