"""What is public: `illia_fn`, its packages, and the modules and names that these import under their own name."""

import ast
import importlib
import inspect
import pkgutil

import illia_fn


def public_modules():
    """illia_fn, its packages and modules, and the modules that these re-export, in that order."""
    own = [info.name for info in pkgutil.iter_modules(illia_fn.__path__) if not info.name.startswith("_")]
    modules = [importlib.import_module(f"illia_fn.{name}") for name in own]
    nested = [value for module in modules for _, value in re_exported(module) if inspect.ismodule(value)]
    return [illia_fn, *modules, *nested]


def re_exported(module):
    """What a module imports under its own name, `from ... import name as name`, in order."""
    for node in ast.parse(inspect.getsource(module)).body:
        for alias in getattr(node, "names", ()):
            if alias.asname == alias.name:
                yield alias.name, getattr(module, alias.name)


def public_names(module):
    """What a module re-exports, and the functions and classes that it defines."""
    yield from re_exported(module)
    for name, value in vars(module).items():
        if is_documentable(value) and value.__module__ == module.__name__ and not name.startswith("_"):
            yield name, value


def is_documentable(value):
    """Functions and classes; type aliases and numbers are not."""
    return inspect.isfunction(value) or inspect.isclass(value)
