"""Every Python block of the README and the docs runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = re.compile(r"^(import|from) (lightning|monai|peft|transformers|foedus\.(lightning|monai|transformers))\b", re.M)
JAX = re.compile(r"^(import|from) (flax|jax|optax|foedus\.jax)\b", re.M)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks():
    for page in PAGES:
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)):
            marks = [pytest.mark.long] if HEAVY.search(block) or JAX.search(block) else []  # seconds of imports
            yield pytest.param(block, id=f"{page.name}-{number}", marks=marks)


@pytest.mark.parametrize("block", list(blocks()))
def test_a_block_of_the_docs_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOEDUS_HOME", str(tmp_path))
    if JAX.search(block):  # has threads, and what is loaded beside it may not fork any more
        subprocess.run([sys.executable, "-c", block], check=True)
    else:
        exec(compile(block, "block", "exec"), {"__name__": "block"})


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
