"""The learners of other libraries at real sites: the bits of a simulation, without a network."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from federations import finished, joined
from foedus import jobfile, launch

pytestmark = [pytest.mark.processes, pytest.mark.long]
JOB = Path(__file__).parent / "jobs" / "learners" / "job.py"
SCRIPT = """
import foedus as fd
torchrun = ["torchrun", "--nproc-per-node", "2"]
job = fd.Job(fd.fedavg(), fd.Script("net.py", ["ranks"], launcher=torchrun, model={model}), rounds=1, privacy="none")
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learners")
    sites = {name: folder / name for name in ("north", "south")}
    for name, place in sites.items():
        image, label = np.indices((10, 10, 3)).sum(0) + len(name), np.eye(10)[..., None] * np.ones(3)
        for part, voxels in (("images", image), ("labels", label)):
            (place / part).mkdir(parents=True)
            nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), np.eye(4)), place / part / "a.nii")
    with joined(folder / "home", sites) as made:
        yield made, sites


@pytest.mark.parametrize("learner", ["lightning", "transformers", "monai", "sklearn", "forest", "lightgbm", "jax"])
def test_real_sites_have_the_bits_of_a_simulation(federation, learner, tmp_path):
    made, sites = federation
    result = finished(made.remote().submit(JOB, {"learner": learner}))
    local = launch.run(jobfile.load(JOB, {"learner": learner}).job, sites, folder=tmp_path / "local", backend="local")
    assert result.digest == local.digest and len(result.history) == 2


def test_processes_of_torchrun_need_the_network_and_their_site_says_how(federation, tmp_path):
    made, _ = federation
    (tmp_path / "net.py").write_text((JOB.parents[1] / "script" / "net.py").read_text())
    (tmp_path / "job.py").write_text(SCRIPT.replace("{model}", "{'weight': 0.0}"))
    north, _ = made.remote().check(tmp_path / "job.py")
    assert not north["ready"] and "`network = true` in the site's policy.toml" in north["why"]
