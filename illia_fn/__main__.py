"""The demo: a Bayesian network next to the same network trained deterministically, on real data.

python -m illia_fn                                  the handwritten digits that come with scikit-learn
python -m illia_fn --data diabetes                  a regression with predictive intervals
python -m illia_fn --csv FILE --target COLUMN       your own table: classification or regression
"""

import argparse
import sys
import time
from functools import cache, partial
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import optax

import illia_fn
from illia_fn import divergences

try:
    from rich.console import Console
    from rich.progress import track

    from illia_fn._demo import data
    from illia_fn._demo.recipes import Ensemble, map_loss, model_of, recipes_of, with_prior_on_all
    from illia_fn._demo.report import report
except ModuleNotFoundError as error:
    sys.exit(f"python -m illia_fn needs {error.name}: pip install 'illia_fn[demo]'")


OBJECTIVES = {
    "elbo": illia_fn.elbo_loss,
    "predictive": illia_fn.predictive_loss,
    "iwae": illia_fn.iwae_loss,
    "renyi": partial(illia_fn.renyi_loss, alpha=0.5),
    "cubo": illia_fn.cubo_loss,
    "f_divergence": partial(illia_fn.f_divergence_loss, generator=divergences.jeffreys),
    "pac_bayes": illia_fn.pac_bayes_loss,
}


def fit(loss, q, x, y, keys, optimizer, batch_size):
    """Minimise loss(q, x, y, key) on random minibatches, one step for each key."""

    @jax.jit
    def step(q, opt_state, key):
        batch_key, loss_key = jax.random.split(key)
        batch = jax.random.choice(batch_key, len(x), (batch_size,), replace=False)
        value, grads = jax.value_and_grad(loss)(q, x[batch], y[batch], loss_key)
        updates, opt_state = optimizer.update(grads, opt_state, q)
        return optax.apply_updates(q, updates), opt_state, value

    opt_state, values = optimizer.init(q), []
    for key in keys:
        q, opt_state, value = step(q, opt_state, key)
        values.append(value)
    return q, jnp.stack(values)


def train(dataset, objective, seed, epochs, num_samples, coupling=None, recipes=None, members=4):
    """Train the Bayesian networks, a deterministic twin and an ensemble of such, all with one prior, rate and steps.

    Returns apply_fn, the parameters of each network, and for "pac_bayes" a certificate of the Bayesian one.
    """
    apply_fn, params = model_of(dataset, seed)
    x, y = jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train)
    steps_per_epoch = -(-len(x) // 128)
    min_steps = 3000 if x.ndim == 2 else 0
    num_steps = epochs * steps_per_epoch if epochs else max(100 * steps_per_epoch, min_steps)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))
    loss_fn = illia_fn.gaussian_nll if dataset.classes is None else None

    def run(name, loss, tree, x, y, optimizer=optimizer, seed=seed):
        keys = jax.random.split(jax.random.key(seed), num_steps)
        progress = track(keys, f"{name:>22}", console=Console(stderr=True))
        loss = partial(loss, apply_fn, num_data=len(x), loss_fn=loss_fn)
        return fit(loss, tree, x, y, progress, optimizer, batch_size=min(128, len(x)))[0]

    # most objectives need one network for the whole batch, and take no coupling
    coupling = coupling or ("decorrelated" if x.ndim == 2 and objective == "elbo" else "shared")
    noise = {"num_samples": num_samples} | ({} if coupling == "shared" else {"coupling": coupling})
    recipes = recipes or recipes_of(dataset, members)
    most = max(members, *[recipe.members for recipe in recipes.values()])
    starts = [params, *(model_of(dataset, 1000 * (seed + 1) + member)[1] for member in range(1, most))]
    trained = [run(numbered("deterministic", at), map_loss, starts[at], x, y, seed=seed + at) for at in range(members)]
    others = {"deterministic": trained[0]} | ({f"ensemble of {members}": Ensemble(trained)} if members > 1 else {})
    if objective == "pac_bayes":
        # a prior from one half of the data, and a posterior and its certificate from the other
        half, slow = len(x) // 2, optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))
        prior = illia_fn.mean_field(run("prior", map_loss, params, x[:half], y[:half], slow), scale=0.02)
        bound = partial(OBJECTIVES[objective], prior=prior, **noise)
        q = run("Bayesian", bound, prior, x[half:], y[half:], slow)
        certify = jax.jit(partial(illia_fn.pac_bayes_certificate, apply_fn, num_samples=500))
        certificate = certify(q, x[half:], y[half:], jax.random.key(seed), prior=prior)
        return apply_fn, {"Bayesian": q, **others}, certificate

    names = {recipe._replace(members=1): name for name, recipe in recipes.items()}

    @cache
    def member(recipe, at):
        bound = with_prior_on_all(OBJECTIVES[objective], kl_weight=recipe.kl_weight, **noise)
        q = illia_fn.mean_field(starts[at], mask=recipe.mask)
        rule = optax.chain(optimizer, illia_fn.slow_scales(recipe.scale_rate))
        return run(numbered(names[recipe], at), bound, q, x, y, rule, seed=seed + at)

    networks = {}
    for name, recipe in recipes.items():
        found = [member(recipe._replace(members=1), at) for at in range(recipe.members)]
        networks[name] = illia_fn.Mixture.of(found) if len(found) > 1 else found[0]
    return apply_fn, {**networks, **others}, None


def numbered(name, at):
    """The name of a network, and of others that are like it but for their start."""
    return name if at == 0 else f"{name}, start {at + 1}"


def parse(argv):
    """Read the command line and the data it names; a mistake in either ends the program with a sentence and code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m illia_fn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", choices=data.SOURCES, default="digits", help="comes with scikit-learn [digits]")
    source.add_argument("--csv", metavar="FILE", help="your own table of numbers, with a line of column names on top")
    parser.add_argument("--target", metavar="COLUMN", help="the column of --csv to predict")
    tasks = ("classification", "regression")
    parser.add_argument("--task", choices=tasks, help="[text, and few whole numbers, are classes]")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the networks and their training [0]")
    parser.add_argument(
        "--epochs", type=at_least(1), help="passes over the data [100; a table takes 3000 steps or more]"
    )
    parser.add_argument("--objective", choices=OBJECTIVES, default="elbo", help="the bound to train with [elbo]")
    parser.add_argument(
        "--num-samples",
        type=at_least(1),
        help="Monte Carlo samples in a training step [1 for elbo and pac_bayes, or 4]",
    )
    couplings = get_args(illia_fn.coupling.Coupling)
    help_text = "of the noise across the examples of a batch [shared for images, decorrelated for a table]"
    parser.add_argument("--coupling", choices=couplings, help=help_text)
    parser.add_argument(
        "--members", type=at_least(1), default=4, help="networks of the ensemble and of the mixture, 1 for neither [4]"
    )
    parser.add_argument("--output", metavar="PNG", type=Path, help="where the picture goes [illia_fn_DATA.png]")
    args = parser.parse_args(argv)
    if (args.csv is None) != (args.target is None) or (args.task and not args.csv):
        parser.error("--csv FILE and --target COLUMN go together, and --task goes with them")
    try:
        dataset = data.table(args.csv, args.target, args.task) if args.csv else data.SOURCES[args.data]()
    except data.DataError as error:
        parser.error(str(error))
    if args.objective == "pac_bayes" and dataset.classes is None:
        parser.error("--objective pac_bayes needs a loss in [0, 1], so it takes classes only")
    if args.objective == "f_divergence" and args.num_samples == 1:
        parser.error("--objective f_divergence needs --num-samples of at least 2: they estimate the evidence")
    if args.coupling not in (None, "shared") and args.objective not in ("elbo", "pac_bayes"):
        parser.error(f"--objective {args.objective} needs one network for the whole batch: leave out --coupling")
    args.num_samples = args.num_samples or (1 if args.objective in ("elbo", "pac_bayes") else 4)
    args.output = args.output or Path(f"illia_fn_{dataset.name}.png")
    if args.output.suffix != ".png" or not args.output.parent.is_dir():
        parser.error(f"--output {args.output}: it must be the name of a .png file in a folder that exists")
    return dataset, args


def at_least(minimum):
    """Make a parser of whole numbers."""

    def parse_number(text):
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {minimum}, got {text}")
        return value

    return parse_number


def main(argv=None):
    """Train, compare, and save the picture."""
    dataset, args = parse(argv)
    console = Console()
    start = time.perf_counter()
    task = f"{len(dataset.classes)} classes" if dataset.classes else f"regression on {dataset.target}"
    sizes = f"{len(dataset.x_train)} examples to train on, {len(dataset.x_test)} held out"
    console.print(f"{dataset.name}: {sizes}, {task}")
    apply_fn, networks, certificate = train(
        dataset, args.objective, args.seed, args.epochs, args.num_samples, args.coupling, members=args.members
    )
    table, figure = report(dataset, apply_fn, networks, args.seed)
    figure.savefig(args.output, dpi=130)
    console.print(table)
    if certificate is not None:
        console.print(
            f"certificate: with probability 0.95, networks drawn from q err on at most {100 * certificate.bound:.1f} % "
            f"of new examples like these ({100 * certificate.empirical_risk:.1f} % of those it was certified on)"
        )
    console.print(f"picture: {args.output}   ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
