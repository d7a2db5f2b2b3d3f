"""Synthetic lesions in real anatomy: slices of the MNI152 brain (from the nilearn wheel) as hospitals would see them.
`write` makes a folder per hospital, in which a patient's slice is a file with `image` (T1c, FLAIR) and `truth`."""

from collections import namedtuple
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

import foedus as fd

SIZE, PIXEL = 64, 208 / 64
BRAIN = np.array([[[0]], [[-18]]])  # its centre, in the template's mm
PARTS = {"train": 8, "valid": 8, "test": 40}  # patients, one slice of each
CORE, RIM, OEDEMA = 1, 2, 3

# A scanner and the lesions of its patients: pairs are for T1c and FLAIR, signals relative to white matter, in mm;
# `spots` in white matter, on average, are no tumour; `share` of the patients have a lesion.
Hospital = namedtuple("Hospital", "gamma grey fluid bias noise blur rim oedema radius spread where spot spots share")
HOSPITALS = {
    "A": Hospital((1, 1), 1.25, 0.15, 0.15, 0.03, (0.8, 0.8), 1.3, 1.6, (7, 16), (8, 18), (-28, 25), 22, 0, 0.8),
    "B": Hospital((0.75, 0.8), 1.1, 0.3, 0.25, 0.045, (1.8, 1.4), 1.2, 1.55, (8, 15), (6, 16), (28, -45), 16, 0, 0.8),
    "C": Hospital((1.6, 1.5), 1.45, 0.05, 0.25, 0.04, (0.8, 2.5), 1.55, 1.7, (8, 15), (6, 16), (0, -10), 22, 5, 0.75),
    "D": Hospital((1.25, 0.9), 1.3, 0.2, 0.35, 0.06, (1.6, 1.6), 1.25, 1.6, (6, 18), (5, 18), (0, 0), 60, 3, 0.8),
    "E": Hospital((0.9, 1.2), 1.2, 0.1, 0.3, 0.05, (1.2, 1.0), 1.4, 1.5, (7, 15), (6, 16), (20, 20), 30, 2, 0.8),
}


@cache
def template(name):
    """One of the maps t1, gm and wm, 1 mm a voxel, 0 to 255."""
    from nibabel import load

    place = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
    return np.asarray(load(place / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz").dataobj)


def patient(hospital, key):
    """A slice of one patient: image (2, 64, 64) float32, truth (64, 64) uint8."""
    h, rng = HOSPITALS[hospital], key.numpy()
    mm, place = (np.indices((SIZE, SIZE)) - (SIZE - 1) / 2) * PIXEL + BRAIN, position(rng)
    anatomy, truth = sampled(place, mm), np.zeros((SIZE, SIZE), np.uint8)
    if rng.random() < h.share:
        near = np.exp(-((mm - np.reshape(h.where, (2, 1, 1))) ** 2).sum(0) / (2 * h.spot**2))
        off = mm - drawn(mm, near * (gaussian_filter(anatomy["wm"], 4 / PIXEL) > 0.45), rng)
        radius = rng.uniform(*h.radius)
        anatomy = sampled(place, mm, off, radius)
        truth = lesion(anatomy, off, radius, h, rng)
    return scanned(signals(anatomy, truth, h, rng), anatomy["head"], h, rng), truth


def smooth(rng, mm):
    """Noise of mean 0 and standard deviation 1, smooth over this length."""
    noise = gaussian_filter(rng.standard_normal((SIZE, SIZE)), mm / PIXEL, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def drawn(values, weight, rng):
    """The values at a pixel drawn by weight, (n, 1, 1)."""
    return values.reshape(len(values), -1)[:, rng.choice(weight.size, p=(weight / weight.sum()).ravel())][:, None, None]


def position(rng):
    """Where this patient's slice lies in the template: a function from mm to voxels."""
    turn, scale, height = rng.normal(0, 0.05), rng.normal(1, 0.04, 2), rng.uniform(0, 45)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / scale
    warp = 2 * np.stack([smooth(rng, 12), smooth(rng, 12)])

    def place(mm):
        x, y = np.einsum("ij,jxy->ixy", matrix, mm - BRAIN) + warp
        return np.stack([x + 98, y + 116, np.full_like(x, height + 72)])

    return place


def sampled(place, mm, off=None, radius=0.0):
    """The anatomy on the pixels, pushed outward by a lesion from whose centre they are `off`."""
    if off is not None:
        far = np.hypot(*off) + 1e-6
        mm = mm - off / far * np.minimum(far, 0.45 * radius * np.exp(-((far / (2.2 * radius)) ** 2)))
    found = {name: map_coordinates(template(name), place(mm), np.float32, 1) / 255 for name in ("t1", "gm", "wm")}
    return found | {"head": found["t1"] > 0.1}


def lesion(anatomy, off, radius, h, rng):
    """Labels: a core in a rim, with oedema that follows white matter and spares cortex and fluid."""
    turn, stretch, rim = rng.uniform(0, np.pi), rng.uniform(0.75, 1.3), rng.uniform(2.5, 5)
    along, across = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) @ off.reshape(2, -1)
    far = np.hypot(along * stretch, across / stretch).reshape(SIZE, SIZE) + 0.13 * radius * smooth(rng, 5)
    tumour = (far < radius) & (anatomy["gm"] + anatomy["wm"] > 0.3)
    core = tumour & (far < radius - np.clip(radius / 2, 1.5, rim))
    oedema = (far < radius + rng.uniform(*h.spread)) & (gaussian_filter(anatomy["wm"], 2 / PIXEL) > 0.5)
    return np.select([core, tumour, oedema], [CORE, RIM, OEDEMA], 0).astype(np.uint8)


def signals(anatomy, truth, h, rng):
    """T1c and FLAIR without a scanner's faults, white matter being about 1."""
    grey, white = anatomy["gm"], anatomy["wm"]
    t1c, flair = anatomy["t1"] / 0.8, h.grey * grey + white + h.fluid * np.clip(anatomy["head"] - grey - white, 0, 1)
    for _ in range(rng.poisson(h.spots)):
        (x,), (y,) = drawn(np.indices(white.shape), white, rng)[:, 0]
        flair[x : x + 2, y : y + rng.integers(1, 3)] = h.oedema
    dark, dose, wet = rng.uniform(0.3, 0.75), rng.uniform(0.85, 1.1), rng.uniform(0.8, 1.1)
    which = [truth == label for label in (CORE, RIM, OEDEMA)]
    t1c = np.select(which, [dark, h.rim * dose, 0.75 * t1c], t1c)
    return np.stack([t1c, np.select(which, [0.4 + dark, 1.3, h.oedema * wet], flair)])


def scanned(image, head, h, rng):
    """What this hospital's scanner makes of it, with mean 0 and standard deviation 1 in the head."""
    for channel, (gamma, blur) in enumerate(zip(h.gamma, h.blur, strict=True)):
        x, field = gaussian_filter(np.clip(image[channel], 0, None) ** gamma, blur / PIXEL), smooth(rng, 40)
        x *= 1 + h.bias * field / abs(field).max()
        x = np.hypot(x + h.noise * rng.standard_normal(x.shape), h.noise * rng.standard_normal(x.shape))
        image[channel] = (x - x[head].mean()) / x[head].std()
    return image.astype(np.float32)


def write(folder, seed=0, hospitals="ABCDE", parts=PARTS):
    """Writes the patients of these hospitals and returns name -> folder."""
    for hospital in hospitals:
        Path(folder, hospital).mkdir(parents=True, exist_ok=True)
        for part, n in [(part, n) for part, count in parts.items() for n in range(count)]:
            image, truth = patient(hospital, fd.key(seed, "patient", hospital, part, n))
            np.savez(Path(folder, hospital, f"{part}-{n:02}.npz"), image=image, truth=truth)
    return {hospital: Path(folder, hospital) for hospital in hospitals}


def read(folder, part):
    """The slices of a part in this folder and the folders in it: images (n, 2, 64, 64), truths (n, 64, 64)."""
    files = [np.load(path) for path in sorted(folder.rglob(f"{part}-*.npz"))]
    if not files:
        raise FileNotFoundError(f"{folder} has no {part}-*.npz: write them with data.write")
    return np.stack([file["image"] for file in files]), np.stack([file["truth"] for file in files]).astype(np.int64)
