"""Medical images: folders of NIfTI and DICOM, U-Nets, sliding windows, Dice and Hausdorff distances as sums.
monai, nibabel and pydicom come in here and are an extra."""

from __future__ import annotations

from foedus.errors import Missing

try:
    import monai as _monai  # noqa: F401
    import nibabel as _nibabel  # noqa: F401
    import pydicom as _pydicom  # noqa: F401
except ModuleNotFoundError as error:
    raise Missing("monai with nibabel and pydicom", "monai") from error

from foedus.monai.learner import MonaiLearner, unet
from foedus.monai.overlap import dice, hausdorff
from foedus.monai.reading import Volumes, statistics, volumes

__all__ = ["MonaiLearner", "Volumes", "dice", "hausdorff", "statistics", "unet", "volumes"]
