"""Every page: its code runs and prints what is shown, its links lead somewhere. Every public name has an example."""

import inspect
import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from public_api import is_documentable, public_modules, public_names

import benchmarks
import illia_fn
from benchmarks.__main__ import EVIDENCE, NAMES
from benchmarks._report import RESULTS
from tests.build_docs import build

ROOT = Path(__file__).parents[1]
FILES = {ROOT / "README.md", *ROOT.glob("[!.]*/**/README.md"), *ROOT.glob("illia_fn/**/*.md")}
PAGES = [path.relative_to(ROOT).as_posix() for path in sorted(FILES)]
COUPLING = "illia_fn/coupling/README.md"
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def blocks(page):
    """(language, text, line) of each fenced block."""
    text = (ROOT / page).read_text()
    return [(match[1], match[2], text[: match.start()].count("\n") + 1) for match in FENCE.finditer(text)]


@pytest.mark.promotes
@pytest.mark.parametrize("page", PAGES)
def test_code_runs_in_order_and_prints_what_is_shown(page, capsys):
    """One namespace for each page. A text block shows all that the Python block before it prints."""
    namespace, printed = {}, ""
    for language, text, line in blocks(page):
        if language == "python":
            exec(compile("\n" * line + text, page, "exec"), namespace)
            printed = capsys.readouterr().out
        elif language == "text":
            assert printed == text, f"{page}, line {line}"


@pytest.mark.promotes
def test_the_objective_of_ones_own_ends_at_the_posterior():
    """From the page of objectives: a linear regression by full covariances, from scales that are too small."""
    (code,) = [text for _, text, _ in blocks("illia_fn/objectives/README.md") if "def log_cosh_loss" in text]
    namespace = {"illia_fn": illia_fn, "jax": jax, "jnp": jnp}
    exec(code.partition("\n\nown = ")[0], namespace)
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    y = x @ np.float32([1.0, -2.0])
    covariance = np.linalg.inv(x.T @ x + np.eye(2, dtype=np.float32))
    posterior = illia_fn.FullCovariance.from_covariance(jnp.asarray(covariance @ (x.T @ y)), jnp.asarray(covariance))
    options = {"num_data": 20, "loss_fn": illia_fn.gaussian_nll}
    loss = partial(namespace["log_cosh_loss"], lambda w, x: x @ w, x=x, y=y, **options)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, 600))

    def step(state, key):
        q, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(lambda q: loss(q, key=key))(q), opt_state)
        return (optax.apply_updates(q, updates), opt_state), ()

    q = illia_fn.full_covariance(jnp.zeros(2), scale=0.05)
    keys = jax.random.split(jax.random.key(0), 600)
    (q, _), _ = jax.jit(lambda q: jax.lax.scan(step, (q, optimizer.init(q)), keys))(q)
    assert illia_fn.kl_divergence(q, posterior) < 1e-5  # draw by draw, so that nothing is left of the noise


def test_the_loop_is_the_one_the_demo_runs():
    from illia_fn.__main__ import fit

    assert inspect.getsource(fit) in (ROOT / "README.md").read_text()


def test_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


# --- figures ------------------------------------------------------------------------------------------------------


def test_tables_are_those_that_the_benchmarks_printed_last():
    tables = {}
    for page in PAGES:
        tables |= dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", (ROOT / page).read_text(), re.DOTALL))
    assert tables == {name: (RESULTS / f"{name}.md").read_text() for name in (*NAMES, *EVIDENCE)}


def test_figures_in_prose_are_those_of_the_tables():
    claims = [claim for name in NAMES for claim in json.loads((RESULTS / f"{name}.json").read_text())["claims"]]
    ratio = {claim["text"]: claim["ratio"] for claim in claims}
    readme, coupling = (" ".join((ROOT / page).read_text().split()) for page in ("README.md", COUPLING))
    assert f"takes {ratio['ours / 8 deterministic passes']:.1f} times as long as eight deterministic passes" in readme
    assert f"and {ratio['ours / fastest torch library']:.2f} times as long as in the fastest of the torch" in readme
    of_loc = [ratio[f"{model}, n = 8: variance of loc, times lower"] for model in ("MLP", "CNN")]
    of_rho = [ratio[f"{model}, n = 8: variance of rho, times lower"] for model in ("MLP", "CNN")]
    assert f"lowers the variance of its gradient {of_loc[0]:.0f} times for the means" in readme
    assert f"is {of_loc[0]:.0f} times lower for an MLP and {of_loc[1]:.0f} times for a CNN" in coupling
    assert f"that of the scales {of_rho[0]:.0f} and {of_rho[1]:.0f} times" in coupling
    of_yacht = re.search(
        r"^\| yacht \| (\S+) .*?±.*? \| (\S+) ±", (RESULTS / "uci_regression.md").read_text(), re.MULTILINE
    )
    assert f"on yacht {of_yacht[2]} nats per row against {of_yacht[1]}" in readme
    (steps,) = [value for text, value in ratio.items() if text.startswith("training: steps to the final ELBO")]
    assert f"takes {steps:.2f} of the steps" in coupling


def test_the_site_has_no_broken_link_and_no_public_name_without_documentation(tmp_path, monkeypatch):
    for module in [*public_modules(), benchmarks]:
        monkeypatch.setattr(module, "__all__", [], raising=False)  # which it sets, and which is to be as it was
    assert not build(tmp_path, show_source=False)  # which holds no link of ours


# --- links --------------------------------------------------------------------------------------------------------


def anchors(page):
    """The anchors of a page's headings, as GitHub and pdoc make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", (ROOT / page).read_text())):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(file), f"{page}: {target}"


# --- public names -------------------------------------------------------------------------------------------------


def test_every_public_name_is_documented_with_an_example():
    names = [(module, name, value) for module in public_modules() for name, value in public_names(module)]
    assert len(names) > 100
    for module, name, value in names:
        if is_documentable(value):
            doc = inspect.getdoc(value)
            is_record = inspect.isclass(value) and (hasattr(value, "_fields") or inspect.isabstract(value))
            assert doc, f"{module.__name__}.{name}"
            assert ">>>" in doc or is_record, f"{module.__name__}.{name}"


def test_every_package_has_a_page():
    packages = {Path(module.__file__).parent for module in public_modules() if hasattr(module, "__path__")}
    assert {path / "README.md" for path in packages - {ROOT / "illia_fn"}} == set(ROOT.glob("illia_fn/**/README.md"))
    for package in packages:
        page = "../README.md" if package.name == "illia_fn" else "README.md"
        included = re.findall(r"^\.\. include:: (.*)$", (package / "__init__.py").read_text(), re.MULTILINE)
        others = sorted(path.name for path in package.glob("*.md") if path.name != "README.md")
        assert included == [page, *others], package
