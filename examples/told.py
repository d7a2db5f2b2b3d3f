"""`python examples/told.py JOB [SEEDS]`: what an example's README has: the table by site, who gains, and the plot."""

import sys
from pathlib import Path

import foedus as fd


def sentence(study, site, method):
    """Whether joining by this method helps the site; its intervals hold together at 95 % over the comparisons."""
    gain, half = study.difference("alone", method, of=site)
    gain = -gain
    word = "helps" if gain > half else "harms" if gain < -half else "makes no difference that the seeds tell"
    return f"{site}: {method} {word} ({gain:+.3f} ± {half:.3f})."


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
