"""`fd.progress()`: tells the agent that a site's work advances; outside of a site's worker it does nothing.
Only the standard library may come in; the worker sets `tell`, and a run that is watched sets `heard`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

tell: Callable[[int], object] | None = None  # set by the worker
heard: Callable[[str], object] | None = None  # what hears of each site of a simulation that is done


def progress(n: int = 1) -> None:
    """Says that work advanced by `n` steps; a worker that says nothing and uses no CPU time is stopped in the end."""
    if tell is not None:
        tell(n)


def site_done(name: str) -> None:
    """Says that a site of a simulation is done with its Task, for whoever looks."""
    if heard is not None:
        heard(name)


@contextmanager
def hearing(by: Callable[[str], object] | None) -> Iterator[None]:
    """Inside the block `by` hears of sites that are done; None: nobody does, as in a run within a run."""
    global heard  # noqa: PLW0603
    before, heard = heard, by
    try:
        yield
    finally:
        heard = before


class _Callable(ModuleType):
    """Lets `fd.progress()` work although importing this module puts it where the function is looked up."""

    def __call__(self, n: int = 1) -> None:
        progress(n)


sys.modules[__name__].__class__ = _Callable
