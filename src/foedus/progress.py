"""`fd.progress()`: tells the agent that a site's work advances; outside of a site's worker it does nothing.
Only the standard library may come in; the worker sets `tell`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

tell: Callable[[int], object] | None = None  # set by the worker


def progress(n: int = 1) -> None:
    """Says that work advanced by `n` steps; a worker that says nothing and uses no CPU time is stopped in the end."""
    if tell is not None:
        tell(n)


class _Callable(ModuleType):
    """Lets `fd.progress()` work although importing this module puts it where the function is looked up."""

    def __call__(self, n: int = 1) -> None:
        progress(n)


sys.modules[__name__].__class__ = _Callable
