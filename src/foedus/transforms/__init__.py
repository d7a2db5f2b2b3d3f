"""What happens to an update on its way out and to the total on its way in; a Transform wraps the algorithm.
The contract and arrays may come in; no backend knows of Transforms."""

from foedus.transforms.blockwise import int4, int8
from foedus.transforms.casting import bf16, fp16
from foedus.transforms.chain import chain, transformed
from foedus.transforms.clip import clip
from foedus.transforms.powersgd import powersgd
from foedus.transforms.qsgd import qsgd
from foedus.transforms.random_k import random_k
from foedus.transforms.top_k import top_k

__all__ = ["bf16", "chain", "clip", "fp16", "int4", "int8", "powersgd", "qsgd", "random_k", "top_k", "transformed"]
