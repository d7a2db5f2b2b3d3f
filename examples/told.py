"""`python examples/told.py JOB [SEEDS]`: what an example's README has: the table by site, who gains, and the plot."""

import sys
from math import isnan
from pathlib import Path

import foedus as fd

WORDS = {"better": "helps", "worse": "harms", "": "makes no difference that the seeds tell"}


def sentence(study, site, method):
    """Whether joining by this method helps the site; its intervals hold together at 95 % over the comparisons."""
    found = study.difference(method, "alone", of=site)
    if isnan(found.half):
        return f"{site}: {method} less alone {found.mean:+.3f}, which one seed does not tell from chance."
    return f"{site}: {method} {WORDS[study.verdict(method, 'alone', of=site)]} ({found.mean:+.3f} ± {found.half:.3f})."


def main(job, seeds=5):
    study = fd.compare(job, seeds=range(int(seeds)))
    print(study.by_site())
    for site in (*study.sites, "mean"):
        for method in study.by_method:
            if method not in ("alone", "pooled", "unseen-site"):
                print("-", sentence(study, site, method))
    study.plot(path=Path(job).parent / "study.svg")


if __name__ == "__main__":
    main(*sys.argv[1:])
