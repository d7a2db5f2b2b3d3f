"""Synthetic lesions in real anatomy: slices of the MNI152 brain (2009a, from the nilearn wheel) as hospitals would see them.
`python data.py FOLDER` writes a folder per hospital; a slice is a file with `image` (T1c and FLAIR, 64 × 64) and `truth`."""

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

import foedus as fd

SIZE, PIXEL = 64, 208 / 64  # pixels, and millimetres of one
PARTS = {"train": 8, "valid": 8, "test": 40}  # patients, one slice of each
CORE, RIM, OEDEMA = 1, 2, 3


class Hospital(NamedTuple):
    """A scanner (a pair is for T1c and FLAIR) and the lesions that its patients have; lengths in mm."""

    gamma: tuple[float, float]
    grey: float  # FLAIR signals, white matter being 1: grey matter, fluid
    fluid: float
    bias: float
    noise: float
    blur: tuple[float, float]
    rim: float  # T1c and FLAIR signals of a lesion
    oedema: float
    radius: tuple[int, int]
    spread: tuple[int, int]
    where: tuple[int, int]
    spot: float
    spots: float  # white-matter spots that are no tumour, on average
    share: float  # of the patients who have a lesion


HOSPITALS = {
    "A": Hospital((1, 1), 1.25, 0.15, 0.15, 0.03, (0.8, 0.8), 1.3, 1.6, (7, 16), (8, 18), (-28, 25), 22, 0, 0.8),
    "B": Hospital((0.75, 0.8), 1.1, 0.3, 0.25, 0.045, (1.8, 1.4), 1.2, 1.55, (8, 15), (6, 16), (28, -45), 16, 0, 0.8),
    "C": Hospital((1.6, 1.5), 1.45, 0.05, 0.25, 0.04, (0.8, 2.5), 1.55, 1.7, (8, 15), (6, 16), (0, -10), 22, 5, 0.75),
    "D": Hospital((1.25, 0.9), 1.3, 0.2, 0.35, 0.06, (1.6, 1.6), 1.25, 1.6, (6, 18), (5, 18), (0, 0), 60, 3, 0.8),
    "E": Hospital((0.9, 1.2), 1.2, 0.1, 0.3, 0.05, (1.2, 1), 1.4, 1.5, (7, 15), (6, 16), (20, 20), 30, 2, 0.8),
}


@cache
def template(name):
    """One of the maps t1, gm and wm, on 1 mm voxels, in [0, 1]."""
    from nibabel import load

    found = find_spec("nilearn")
    if found is None or found.origin is None:
        raise fd.FoedusError("the brain is in the package nilearn: pip install 'foedus[examples]'")
    path = Path(found.origin).parent / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.exists():
        raise fd.FoedusError(f"this nilearn has no {path.name}: pip install 'nilearn>=0.14,<0.15'")
    return np.asarray(load(path).dataobj)


def patient(hospital, key):
    """A slice of one patient: image (2, 64, 64) float32, truth (64, 64) uint8."""
    h, rng = HOSPITALS[hospital], key.numpy()
    place, mm = position(rng)
    anatomy = sampled(place, mm)
    truth = np.zeros((SIZE, SIZE), np.uint8)
    if rng.random() < h.share:
        centre, radius = site_of(anatomy["wm"], mm, h, rng), rng.uniform(*h.radius)
        anatomy = sampled(place, mm, centre, radius)
        truth = lesion(anatomy, mm - centre[:, None, None], radius, h, rng)
    return scanned(signals(anatomy, truth, h, rng), anatomy["head"], h, rng), truth


def smooth(rng, mm):
    """Noise of mean 0 and standard deviation 1, smooth over this length."""
    noise = gaussian_filter(rng.standard_normal((SIZE, SIZE)), mm / PIXEL, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def position(rng):
    """Where the pixels of this patient's slice lie in the template: a function of mm; and their mm (2, 64, 64)."""
    steps = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL
    mm = np.stack(np.meshgrid(steps, steps - 18, indexing="ij"))
    turn, scale, height = rng.normal(0, 0.05), rng.normal(1, 0.04, 2), rng.uniform(0, 45)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / scale
    matrix[0] *= rng.choice([-1, 1])  # left and right
    warp = 2 * np.stack([smooth(rng, 12), smooth(rng, 12)])

    def place(at):
        x, y = np.einsum("ij,jxy->ixy", matrix, at - [[[0]], [[-18]]]) + warp
        return np.stack([x + 98, y - 18 + 134, np.full_like(x, height + 72)])  # the template's origin, in voxels

    return place, mm


def sampled(place, mm, centre=(0, 0), radius=0.0):
    """The anatomy on the pixels, pushed away from a lesion that grows at `centre`."""
    off = mm - np.reshape(centre, (2, 1, 1))
    far = np.hypot(*off) + 1e-6
    push = 0.45 * radius * np.exp(-((far / max(2.2 * radius, 1.0)) ** 2))
    at = place(mm - off / far * np.minimum(push, far))
    found = {name: map_coordinates(template(name), at, np.float32, order=1) / 255 for name in ("t1", "gm", "wm")}
    return found | {"head": found["t1"] > 0.1}


def site_of(white, mm, h, rng):
    """The centre of a lesion: in white matter, near where this hospital's patients have theirs."""
    weight = np.exp(-((mm - np.reshape(h.where, (2, 1, 1))) ** 2).sum(0) / (2 * h.spot**2)) + 1e-9
    weight *= gaussian_filter(white, 4 / PIXEL) > 0.45
    return mm.reshape(2, -1)[:, rng.choice(weight.size, p=(weight / weight.sum()).ravel())]


def lesion(anatomy, off, radius, h, rng):
    """Labels: a core in a rim, with oedema that follows white matter and spares cortex and fluid."""
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(0.75, 1.3)
    along, across = np.cos(turn) * off[0] + np.sin(turn) * off[1], np.cos(turn) * off[1] - np.sin(turn) * off[0]
    far = np.hypot(along * stretch, across / stretch) + 0.13 * radius * smooth(rng, 5)
    tumour = (far < radius) & (anatomy["gm"] + anatomy["wm"] > 0.3)
    rim = max(1.5, min(rng.uniform(2.5, 5), radius / 2))
    oedema = (far < radius + rng.uniform(*h.spread)) & (anatomy["wm"] > 0.5)
    return np.select([tumour & (far < radius - rim), tumour, oedema], [CORE, RIM, OEDEMA], 0).astype(np.uint8)


def signals(anatomy, truth, h, rng):
    """T1c and FLAIR without a scanner's faults, white matter being about 1."""
    grey, white = anatomy["gm"], anatomy["wm"]
    fluid = np.clip(anatomy["head"] - grey - white, 0, 1)
    t1c, flair = anatomy["t1"] / 0.8, h.grey * grey + white + h.fluid * fluid
    dark, dose, wet = rng.uniform(0.3, 0.75), rng.uniform(0.85, 1.1), rng.uniform(0.8, 1.1)
    for _ in range(rng.poisson(h.spots)):
        x, y = np.unravel_index(rng.choice(white.size, p=(white / white.sum()).ravel()), white.shape)
        flair[x : x + 2, y : y + rng.integers(1, 3)] = h.oedema
    which = [truth == label for label in (CORE, RIM, OEDEMA)]
    t1c = np.select(which, [dark, h.rim * dose, 0.75 * t1c], t1c)
    return np.stack([t1c, np.select(which, [0.4 + dark, 1.3, h.oedema * wet], flair)])


def scanned(image, head, h, rng):
    """What this hospital's scanner makes of it, with mean 0 and standard deviation 1 in the head."""
    for channel in range(2):
        x = gaussian_filter(np.clip(image[channel], 0, None) ** h.gamma[channel], h.blur[channel] / PIXEL)
        x *= np.exp(h.bias * smooth(rng, 40))
        x = rng.uniform(0.5, 2) * np.hypot(x + h.noise * rng.standard_normal(x.shape), h.noise * rng.standard_normal(x.shape))
        image[channel] = (x - x[head].mean()) / x[head].std()
    return image.astype(np.float32)


def write(folder, seed=0, hospitals="ABCDE", parts=PARTS):
    """Writes the patients of these hospitals; name -> folder of the hospital."""
    for hospital in hospitals:
        place = Path(folder, hospital)
        place.mkdir(parents=True, exist_ok=True)
        for part, number in ((part, i) for part, count in parts.items() for i in range(count)):
            image, truth = patient(hospital, fd.key(seed, "patient", hospital, part, number))
            np.savez(place / f"{part}-{number:02}.npz", image=image, truth=truth)
    return {hospital: Path(folder, hospital) for hospital in hospitals}


def read(folder, part):
    """All slices of a part in a folder and the folders in it: images (n, 2, 64, 64), truths (n, 64, 64)."""
    files = [np.load(path) for path in sorted(Path(folder).rglob(f"{part}-*.npz"))]
    if not files:
        raise fd.FoedusError(f"{folder} has no {part}-*.npz: `python data.py FOLDER` writes a folder per hospital")
    return np.stack([file["image"] for file in files]), np.stack([file["truth"] for file in files]).astype(np.int64)


if __name__ == "__main__":
    write(sys.argv[1], seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
