"""What every benchmark shares: fair timing, and a table that is printed, kept, drawn and asserted."""

import contextlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np

RESULTS = Path(__file__).parent / "results"


class Claim(NamedTuple):
    """A ratio that was measured, and the bound that it must keep."""

    text: str
    ratio: float
    at_most: float = float("inf")
    at_least: float = -float("inf")

    def __str__(self) -> str:
        bound = f"at most {self.at_most:g}" if np.isfinite(self.at_most) else f"at least {self.at_least:g}"
        return f"| {self.text} | {self.ratio:.2f} | {bound} | {'yes' if self.holds else 'NO'} |"

    @property
    def holds(self) -> bool:
        return self.at_least <= self.ratio <= self.at_most


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2) -> dict[str, float]:
    """The median seconds of each function, called in turn: a disturbance of the machine then meets them all."""
    times = {name: [] for name in functions}
    for number in range(-warm_up, rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def report(
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    claims: Sequence[Claim] = (),
    draw: Callable[[plt.Axes], None] | None = None,
) -> None:
    """Print a table and its claims, write results/NAME.md, .json and .png, and then assert the claims."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *(f"| {' | '.join(row)} |" for row in cells)]
    if claims:
        lines += ["", "| claim | measured | target | holds |", "|---|---|---|---|", *map(str, claims)]
    lines += ["", machine()]
    text = "\n".join(lines) + "\n"
    print(text, flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    content = {"machine": machine(), "columns": list(columns), "rows": [list(row) for row in rows]}
    content["claims"] = [{**claim._asdict(), "holds": claim.holds} for claim in claims]
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, default=float) + "\n")
    if draw is not None:
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        draw(axes)
        axes.set_title(name.replace("_", " "))
        figure.savefig(RESULTS / f"{name}.png", dpi=120)
        plt.close(figure)
    failed = [claim.text for claim in claims if not claim.holds]
    assert not failed, f"{name}: {'; '.join(failed)}"


def machine() -> str:
    """The machine and the versions, in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    cpu = names[0] if names else platform.machine()
    versions = [f"Python {platform.python_version()}"]
    for package in ("jax", "numpyro", "torch", "torchbnn", "bayesian-torch", "blitz-bayesian-pytorch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    return f"({cpu}, {os.cpu_count()} cores, {jax.default_backend()} backend; {', '.join(versions)})"
