"""Docstrings of Python packages as bytes: read from the source files, of which none is imported or run."""

import ast
import functools
import importlib.util
import warnings
from pathlib import Path

import numpy as np

import foedus as fd

PACKAGES = ("numpy", "scipy", "sklearn", "pandas", "statsmodels")
OTHERS = {"tests", "test", "testing", "externals", "extern", "vendored", "_vendor", "site-packages"}  # tests, strangers
PARTS = {"test": 12_000, "valid": 6_000, "train": 24_000}  # bytes, filled in this order
LONGEST = 4_000  # bytes of one module, so that no part is of one or two


def folder(package):
    """Where an installed package lies. Raises FoedusError."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise fd.FoedusError(
            f"{package} is not installed: pip install it, or name a folder of Python files for the site"
        )
    return Path(found.submodule_search_locations[0])


@functools.lru_cache(maxsize=16)
def modules(root):
    """The text of each module below a folder, in the order of their paths: docstrings, each where it is met first."""
    seen, found = set(), []
    for path in sorted(Path(root).rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        if OTHERS.isdisjoint(path.relative_to(root).parts):
            new = [text for text in docstrings(path.read_bytes()) if not (text in seen or seen.add(text))]
            found += ["".join(f"{text}\n\0" for text in new).encode(errors="replace")] if new else []
    return tuple(found)


def docstrings(source):
    """Those of a module, its classes and functions; of a file that is no Python of this version, none."""
    try:
        with warnings.catch_warnings():  # of escapes in a string, which the site's own people may mend
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [text for node in ast.walk(tree) if isinstance(node, nodes) if (text := ast.get_docstring(node))]


def divided(texts, random, sizes=PARTS):
    """part -> bytes: modules in random order, each in one part at most, until the part has its size."""
    order, found = iter(random.permutation(len(texts))), {}
    for part, size in sizes.items():
        held = b""
        while len(held) < size and (at := next(order, None)) is not None:
            held += texts[at][:LONGEST]
        found[part] = held[:size]
    return found


class Windows:
    """Stretches of a text for a model of bytes; each begins with the last byte of the one before, which is given."""

    def __init__(self, text, length):
        self.ids, self.length = np.frombuffer(text, np.uint8).astype(np.int64), length

    def __len__(self):
        return max(0, (len(self.ids) - 1) // (self.length - 1))

    def __getitem__(self, i):
        ids = self.ids[i * (self.length - 1) :][: self.length]
        return {"input_ids": ids, "labels": ids}
