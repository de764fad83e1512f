"""Run every benchmark, one after another, and put its table into the README.

python -m benchmarks [NAME ...]
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks._report import RESULTS

NAMES = ("step_time", "memory", "kl_bandwidth", "compile_time", "gradient_quality", "coupling", "coupling_time")
README = Path(__file__).parents[1] / "README.md"


def main(names: list[str]) -> None:
    """Each in a process of its own; all are run, and then the exit code tells whether all claims hold."""
    failed = [name for name in names if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode]
    fill_readme(names)
    sys.exit(f"these claims did not hold: {', '.join(failed)}" if failed else 0)


def fill_readme(names: Iterable[str]) -> None:
    """Put the tables that were printed last into the README."""
    text = README.read_text()
    for name in names:
        table = (RESULTS / f"{name}.md").read_text()
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}{match[2]}", text)
    README.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:] or list(NAMES))
