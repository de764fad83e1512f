"""Run every benchmark, one after another, and put its table where a page has a place for it.

python -m benchmarks [NAME ...]

Those of EVIDENCE take long, and are run by name only.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks._report import RESULTS

NAMES = (
    "digits",
    "defaults",
    "step_time",
    "coupling",
    "coupling_time",
    "memory",
    "large",
    "prediction_memory",
    "kl_bandwidth",
    "families",
    "compile_time",
    "cold_start",
    "convolutions",
    "gradient_quality",
    "natural_gradient",
    "moments",
)
EVIDENCE = ("uci_regression", "calibration", "inference", "choosing", "classification_shift")  # of the folder evidence
PAGES = (Path(__file__).parents[1] / "README.md", Path(__file__).parent / "README.md")


def main(names: list[str]) -> None:
    """Each in a process of its own; all are run, and then the exit code tells whether all claims hold."""
    modules = {name: f"benchmarks.evidence.{name}" if name in EVIDENCE else f"benchmarks.{name}" for name in names}
    failed = [name for name, module in modules.items() if subprocess.run([sys.executable, "-m", module]).returncode]
    fill_pages(names)
    sys.exit(f"these claims did not hold: {', '.join(failed)}" if failed else 0)


def fill_pages(names: Iterable[str]) -> None:
    """Put the tables that were printed last between their markers."""
    for page in PAGES:
        text = page.read_text()
        for name in names:
            table = (RESULTS / f"{name}.md").read_text()
            pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
            text = pattern.sub(lambda match, table=table: f"{match[1]}{table}{match[2]}", text)
        page.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:] or list(NAMES))
