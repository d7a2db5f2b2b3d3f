"""Updates that are not combined: the algorithm gets each site's own.
Only the contract may come in."""

from __future__ import annotations

from foedus.core import Gather


def each() -> Gather:
    """`Total.apart` has what each site returned, as it was sent; `Total.params` is empty.

    The sites' metrics are added up as ever. A Task that is answered so may have `letters`, too: one payload a site.
    """
    return Gather(lambda origins, shares, chunk: chunk[0], apart=True)
