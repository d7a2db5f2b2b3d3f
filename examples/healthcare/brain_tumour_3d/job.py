"""Hospitals segment brain tumours in volumes together: a small 3D U-Net, by FedAvg, or with norms of their own (FedBN).

`foedus run` on this file simulates FedAvg on synthetic lesions, or on FOEDUS_DATA/brats, or on `--site NAME=FOLDER`;
`foedus compare` compares the methods below.
"""

import os
import sys
from functools import partial
from math import cos, pi
from pathlib import Path

import brats
import torch
from monai.transforms import Compose, RandCropByPosNegLabeld, RandFlipd

import foedus as fd
from foedus import home
from foedus.monai import MonaiLearner, dice, hausdorff, unet


def load(site, **how):
    return brats.split(site.data, site.name, **how)


def job(norms="shared", rounds=24, epochs=4, lr=0.005, window=32, modalities="t1c,flair", target="whole",
        normalise="site"):  # fmt: skip
    """`norms`: shared (FedAvg), or own (FedBN: each hospital keeps scales, shifts and running averages of its
    normalisations). `target`: whole, or regions. On real volumes of 1 mm: window=96 and more rounds."""
    if norms not in ("shared", "own"):
        raise fd.FoedusError(f"norms={norms!r} is one of shared and own")
    names, size, classes = tuple(modalities.split(",")), (window,) * 3, brats.TARGETS[target]
    both = ["image", "label"]
    learner = MonaiLearner(
        unet(3, len(names), classes, channels=(8, 16, 32), residual=1, norm="BATCH"),
        optimizer=partial(torch.optim.Adam, lr=lr),
        epochs=epochs,
        batch_size=2,
        augment=Compose([RandCropByPosNegLabeld(both, "label", size, num_samples=1), RandFlipd(both, 0.5, 0)]),
        window=size,
        metrics=[dice(classes), hausdorff(classes)],
        schedule=partial(falling, rounds),
    )
    how = {"modalities": names, "target": target, "normalise": normalise}
    algorithm = fd.fedbn() if norms == "own" else fd.fedavg()
    return fd.Job(algorithm, learner, partial(load, **how), rounds=rounds, evaluate=rounds)


def falling(rounds, round):
    """A cosine from 1 to 0."""
    return (1 + cos(pi * round / rounds)) / 2


def sites(seed=0):
    """hospital -> folder, where no other sites are given: real ones in FOEDUS_DATA/brats, or synthetic ones."""
    real = Path(os.environ.get("FOEDUS_DATA", "")) / "brats"
    if "FOEDUS_DATA" in os.environ and real.is_dir():
        return brats.hospitals(real)
    from volumes import write  # a real hospital needs no template

    return write(home.folder() / "examples" / "brain_tumour_3d" / f"seed-{seed}", seed)


methods = {"FedAvg": job, "FedBN": partial(job, norms="own")}

if __name__ == "__main__":
    import picture

    here = Path(__file__).parent
    sys.path.append(str(here.parents[1]))
    import told

    study = fd.compare(Path(__file__), seeds=range(5))
    print(study.by_site(), study.by_site("hausdorff95"), sep="\n\n")
    print(*(told.sentence(study, site, way) for site in (*study.sites, "mean") for way in methods), sep="\n")
    far = fd.Study(study.scores, "hausdorff95", "min", study.baseline, study.folder)
    for one, other in (("FedBN", "FedAvg"), ("pooled", "FedAvg"), ("pooled", "alone"), ("unseen-site", "FedAvg")):
        for site in (*study.sites, "mean"):
            print(f"{one} less {other}, {site}: {'{:+.3f} ± {:.3f}'.format(*study.difference(one, other, site))}")
    for way in methods:
        print(f"{way} less alone, mean in mm: {'{:+.1f} ± {:.1f}'.format(*far.difference(way, 'alone'))}")
    study.plot(path=here / "study.svg")
    ways = {"own model": job().replace(algorithm=fd.algorithms.alone()), "FedAvg": job(), "FedBN": job("own")}
    picture.drawn(picture.found(ways, sites(), seed=0), here / "picture.png")
