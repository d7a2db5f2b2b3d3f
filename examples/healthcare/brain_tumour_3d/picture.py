"""The first test patient of each hospital, with the tumour as it is and as models find it."""

from typing import NamedTuple

import numpy as np
import torch
from brats import split
from matplotlib.figure import Figure
from monai.inferers import sliding_window_inference


class Shown(NamedTuple):
    """A patient: T1c and FLAIR, (2, x, y, z), where the tumour is and where each model sees it, (x, y, z)."""

    site: str
    image: np.ndarray
    truth: np.ndarray
    seen: dict


def found(ways, sites, seed):
    """A Shown for each site; `ways`: title -> Job."""
    results = {title: job.run(sites, seed=seed, backend="local") for title, job in ways.items()}
    made = []
    for site, folder in sites.items():
        image, label = split(folder, site).test[0]
        seen = {}
        for title, job in ways.items():
            own = job.algorithm.personal is not None
            params = results[title].personal(site) if own else results[title].params
            seen[title] = segmented(job.learner, params, image)
        made.append(Shown(site, image, label[0] > 0, seen))
    return made


def segmented(learner, params, image):
    """Where the model sees a tumour, (x, y, z), as a MonaiLearner measures it."""
    see = learner.module(params)
    with torch.no_grad():
        whole = torch.from_numpy(image)[None]
        logits = sliding_window_inference(whole, learner.window, 4, see, learner.overlap, mode="gaussian")
    return logits[0].argmax(0).numpy() > 0


def drawn(patients, path):
    """A row a patient, in the slice with most tumour: T1c, FLAIR with the tumour, FLAIR with what each model sees."""
    titles = ["T1c", "tumour", *patients[0].seen]
    figure = Figure(figsize=(1.6 * len(titles), 1.9 * len(patients)), dpi=75)
    axes = figure.subplots(len(patients), len(titles), squeeze=False)
    for row, patient in zip(axes, patients, strict=True):
        z = int(patient.truth.sum((0, 1)).argmax())
        panel(row[0], patient.image[0, ..., z])
        for axis, mask in zip(row[1:], (patient.truth, *patient.seen.values()), strict=True):
            panel(axis, patient.image[1, ..., z], mask[..., z], "tab:green" if mask is patient.truth else "tab:red")
        row[0].set_ylabel(patient.site, rotation=0, labelpad=8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path)


def panel(axis, image, mask=None, colour=None):
    """A slice, front up, outside the head in black, and the outline of a mask."""
    inside = image[image != 0]
    low, high = np.quantile(inside, [0.005, 0.995]) if inside.size else (0, 1)
    axis.imshow(
        np.where(image != 0, image, low).T, cmap="gray", origin="lower", vmin=low, vmax=high, interpolation="nearest"
    )
    if mask is not None and mask.any():
        axis.contour(mask.T, [0.5], colors=colour, linewidths=1)
    axis.set(xticks=[], yticks=[])
