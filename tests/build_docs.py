"""Build the documentation as a site: every page with its mathematics, and the reference of every public name.

python -m tests.build_docs [FOLDER]

It fails on a link that leads nowhere and on a public name without documentation.
"""

import html
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pdoc

import benchmarks
from tests.public_api import public_modules, public_names

ROOT = Path(__file__).parents[1]


def build(site: Path, *, show_source: bool = True) -> list[str]:
    """Write the site, and return what is wrong with it."""
    pdoc.render.configure(docformat="google", math=True, show_source=show_source)
    modules = {module.__name__: as_documented(module) for module in [*public_modules(), benchmarks]}
    site.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        file = site / f"{name.replace('.', '/')}.html"
        file.parent.mkdir(exist_ok=True)
        page = page_of(module.obj)
        file.write_text(with_links(pdoc.render.html_module(module, modules), page, file, site))
    packages = {name: module for name, module in modules.items() if name.startswith("illia_fn")}
    (site / "index.html").write_text(pdoc.render.html_index(packages))
    (site / "search.js").write_text(pdoc.render.search_index(modules))
    return [*broken_links(site), *undocumented(modules)]


def as_documented(module) -> pdoc.doc.Module:
    """pdoc documents what is in `__all__`: of illia_fn its packages, as they document the names that it re-exports."""
    packages = [other.__name__.partition(".")[2] for other in public_modules() if other.__name__.count(".") == 1]
    names = [name for name, _ in public_names(module)] if module is not benchmarks else []
    module.__all__ = packages if module.__name__ == "illia_fn" else names
    return pdoc.doc.Module(module)


def page_of(module) -> Path | None:
    """The README.md that the docstring of a package includes."""
    pages = pages_of(module)
    return pages[0] if pages else None


def pages_of(module) -> list[Path]:
    """That, and the pages beside it, which follow it on the page of the package."""
    included = re.findall(r"^\.\. include:: (.*)$", module.__doc__ or "", re.MULTILINE)
    return [(Path(module.__file__).parent / path).resolve() for path in included]


def with_links(text: str, page: Path | None, file: Path, site: Path) -> str:
    """The links of a page between files of the repository, as links between files of the site."""
    pages = {page: module.__name__ for module in [*public_modules(), benchmarks] for page in pages_of(module)}

    def on_site(match: re.Match[str]) -> str:
        path, hash_sign, anchor = html.unescape(match[1]).partition("#")
        source = (page.parent / path).resolve() if path and page else None
        if source is None or not source.exists():
            return match[0]
        if source in pages:
            target = site / f"{pages[source].replace('.', '/')}.html"
            if not anchor and source.name != "README.md":
                hash_sign, anchor = "#", anchor_of(source)
        else:  # a file that is no page: a copy
            target = site / "source" / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        return f'href="{os.path.relpath(target, file.parent)}{hash_sign}{anchor}"'

    return re.sub(r'href="([^":]*)"', on_site, text)


def anchor_of(page: Path) -> str:
    """That of the heading of a page."""
    heading = page.read_text().splitlines()[0].lstrip("# ").lower()
    return re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")


def broken_links(site: Path) -> list[str]:
    """Links and images of the site, other than to the web, whose file or anchor does not exist."""
    scripts = re.compile(r"<script.*?</script>", re.DOTALL)
    texts = {file.resolve(): scripts.sub("", file.read_text()) for file in site.glob("**/*.html")}
    anchors = {file: set(re.findall(r'id="([^"]*)"', text)) for file, text in texts.items()}
    broken = []
    for file, text in texts.items():
        for link in re.findall(r'<(?:a|img)[^>]* (?:href|src)="([^"]*)"', text):
            if re.match(r"https?:|data:", link):
                continue
            path, _, anchor = html.unescape(link).partition("#")
            target = (file.parent / path).resolve() if path else file
            if not target.exists() or (anchor and anchor not in anchors.get(target, {anchor})):
                broken.append(f"{file.relative_to(site.resolve())}: {link} leads nowhere")
    return broken


def undocumented(modules: Mapping[str, pdoc.doc.Module]) -> list[str]:
    """Modules, functions and classes without a docstring."""
    members = [member for module in modules.values() for member in [module, *module.own_members]]
    return [f"{doc.fullname} is not documented" for doc in members if not doc.docstring and doc.kind != "variable"]


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "site")
    if faults := build(folder):
        sys.exit("\n".join(faults))
    print(f"{len(list(folder.glob('**/*.html')))} pages: {folder / 'index.html'}")
