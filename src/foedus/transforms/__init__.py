"""What happens to an update on its way out and to the total on its way in; a Transform wraps the algorithm.
The contract and arrays may come in; no backend knows of Transforms."""

from foedus.transforms.chain import chain, transformed
from foedus.transforms.clip import clip

__all__ = ["chain", "clip", "transformed"]
