"""Synthetic lesions in real anatomy, in 3D: the MNI152 brain (from the nilearn wheel) as three hospitals would see it.
`write` makes a folder a hospital, in which a patient has a folder of NIfTI files as in BraTS 2021: t1ce, flair, seg."""

import shutil
import tempfile
from collections import Counter, namedtuple
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
from brats import part
from scipy.ndimage import gaussian_filter, map_coordinates

import foedus as fd

SIZE, VOXEL, CENTRE = (48, 56, 48), 4.0, (0, -18, 5)  # the middle of the brain, in the template's mm
PARTS = {"train": 6, "valid": 3, "test": 10}  # patients
CORE, OEDEMA, ENHANCING = 1, 2, 4  # BraTS's labels

# A scanner and the lesions of its patients: pairs are for T1c and FLAIR, signals relative to white matter, in mm;
# `spots` in white matter, on average, are no tumour.
Hospital = namedtuple("Hospital", "gamma grey fluid bias noise blur rim oedema radius spread where spot spots")
HOSPITALS = {
    "a": Hospital((1, 1), 1.25, 0.15, 0.1, 0.04, (1, 1), 1.3, 1.6, (9, 18), (5, 12), (-28, 15, 15), 25, 0),
    "b": Hospital((0.85, 0.9), 1.15, 0.25, 0.15, 0.05, (3, 2.5), 1.25, 1.55, (8, 15), (4, 10), (28, -40, 10), 20, 0),
    "c": Hospital((1.3, 1.3), 1.35, 0.05, 0.15, 0.05, (1, 3), 1.5, 1.65, (8, 15), (4, 10), (0, -10, 25), 25, 6),
}


@cache
def template(name):
    """One of the maps t1, gm and wm, 1 mm a voxel, 0 to 1, blurred a little so that 4 mm may sample it."""
    place = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
    found = nibabel.load(place / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
    return gaussian_filter(np.asarray(found.dataobj, np.float32), 1.5) / 255, -found.affine[:3, 3]


def patient(hospital, key):
    """A patient's image of (2, 48, 56, 48) in float32, 0 outside the head, and labels of (48, 56, 48) in uint8."""
    h, rng = HOSPITALS[hospital], key.numpy()
    mm = (np.indices(SIZE) - (np.reshape(SIZE, (3, 1, 1, 1)) - 1) / 2) * VOXEL + np.reshape(CENTRE, (3, 1, 1, 1))
    place = position(mm, rng)
    anatomy = sampled(place)
    near = np.exp(-((mm - np.reshape(h.where, (3, 1, 1, 1))) ** 2).sum(0) / (2 * h.spot**2))
    off = mm - drawn(mm, near * (anatomy["wm"] > 0.5), rng)
    radius = rng.uniform(*h.radius)
    anatomy = sampled(pushed(place, off, radius))
    truth = lesion(anatomy, off, radius, h, rng)
    return scanned(signals(anatomy, truth, h, rng), anatomy["head"], h, rng), truth


def smooth(rng, mm):
    """Noise of mean 0 and standard deviation 1, smooth over this length."""
    noise = gaussian_filter(rng.standard_normal(SIZE), mm / VOXEL, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def drawn(values, weight, rng):
    """The values at a voxel drawn by weight, (n, 1, 1, 1)."""
    index = rng.choice(weight.size, p=(weight / weight.sum()).ravel())
    return values.reshape(len(values), -1)[:, index, None, None, None]


def turned(rng, angle):
    """A rotation by about this angle (radians) around each axis."""
    found = np.eye(3)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        turn, by = np.eye(3), rng.normal(0, angle)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(by), -np.sin(by), np.sin(by), np.cos(by)
        found = found @ turn
    return found


def position(mm, rng):
    """Where each voxel of this patient lies in the template, in mm: turned, scaled and bent."""
    matrix = turned(rng, 0.05) / rng.normal(1, 0.04, 3)
    middle = np.reshape(CENTRE, (3, 1, 1, 1))
    return np.einsum("ij,jxyz->ixyz", matrix, mm - middle) + middle + 2 * np.stack([smooth(rng, 12) for _ in range(3)])


def pushed(place, off, radius):
    """The same, pushed outward by a lesion from whose centre voxels are `off`."""
    far = np.sqrt((off**2).sum(0)) + 1e-6
    return place - off / far * np.minimum(far, 0.45 * radius * np.exp(-((far / (2.2 * radius)) ** 2)))


def sampled(place):
    """The anatomy there."""
    found = {}
    for name in ("t1", "gm", "wm"):
        voxels, origin = template(name)
        found[name] = map_coordinates(voxels, place + origin[:, None, None, None], np.float32, 1)
    return found | {"head": found["t1"] > 0.15}


def lesion(anatomy, off, radius, h, rng):
    """Labels: a core in an enhancing rim, with oedema that follows white matter and spares cortex and fluid."""
    along = np.einsum("ij,jxyz->ixyz", turned(rng, 1.5), off) * np.reshape(rng.uniform(0.75, 1.3, 3), (3, 1, 1, 1))
    far = np.sqrt((along**2).sum(0)) + 0.13 * radius * smooth(rng, 6)
    tumour = (far < radius) & (anatomy["gm"] + anatomy["wm"] > 0.3)
    core = tumour & (far < radius - rng.uniform(3, 6))
    oedema = (far < radius + rng.uniform(*h.spread)) & (anatomy["wm"] > 0.5)
    return np.select([core, tumour, oedema], [CORE, ENHANCING, OEDEMA], 0).astype(np.uint8)


def signals(anatomy, truth, h, rng):
    """T1c and FLAIR without a scanner's faults, white matter being about 1."""
    grey, white = anatomy["gm"], anatomy["wm"]
    t1c, flair = anatomy["t1"] / 0.8, h.grey * grey + white + h.fluid * np.clip(anatomy["head"] - grey - white, 0, 1)
    for _ in range(rng.poisson(h.spots)):
        x, y, z = drawn(np.indices(SIZE), white, rng)[:, 0, 0, 0]
        flair[x : x + rng.integers(1, 3), y : y + 2, z : z + rng.integers(1, 3)] = h.oedema
    dark, dose, wet = rng.uniform(0.3, 0.75), rng.uniform(0.85, 1.1), rng.uniform(0.8, 1.1)
    which = [truth == label for label in (CORE, ENHANCING, OEDEMA)]
    t1c = np.select(which, [dark, h.rim * dose, 0.75 * t1c], t1c)
    return np.stack([t1c, np.select(which, [0.4 + dark, 1.3, h.oedema * wet], flair)])


def scanned(image, head, h, rng):
    """What this hospital's scanner makes of it, in the head."""
    for channel, (gamma, blur) in enumerate(zip(h.gamma, h.blur, strict=True)):
        x, field = gaussian_filter(np.clip(image[channel], 0, None) ** gamma, blur / VOXEL), smooth(rng, 40)
        x *= rng.uniform(0.97, 1.03) * (1 + h.bias * field / abs(field).max())
        x = np.hypot(x + h.noise * rng.standard_normal(SIZE), h.noise * rng.standard_normal(SIZE))
        image[channel] = np.where(head, 100 * x + 1, 0)
    return image.astype(np.float32)


def names(hospital, parts):
    """As many names as each part has patients: the parts are those that names give, as with real cases."""
    left, number = Counter(parts), 0
    while left.total():
        name, number = f"{hospital}_{number:05}", number + 1
        if left[part(name)]:
            left[part(name)] -= 1
            yield name


def save(folder, image, truth):
    """A patient's files, in a folder by its name."""
    folder.mkdir()
    affine = np.diag([VOXEL] * 3 + [1])
    affine[:3, 3] = np.array(CENTRE) - (np.array(SIZE) - 1) / 2 * VOXEL
    for word, voxels in (("t1ce", image[0]), ("flair", image[1]), ("seg", truth)):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / f"{folder.name}_{word}.nii.gz")


def write(folder, seed=0, parts=PARTS):
    """Writes the patients, once, and returns hospital -> folder."""
    folder = Path(folder)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(dir=folder.parent))
        for hospital in HOSPITALS:
            (half / hospital).mkdir()
            for name in names(hospital, parts):
                save(half / hospital / name, *patient(hospital, fd.key(seed, "patient", name)))
        try:
            half.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(half)
    return {hospital: folder / hospital for hospital in HOSPITALS}
