"""The problem in NVIDIA FLARE's simulator, by its FedAvg recipe; its sites run nvflare_site.py.
Run in an environment of its own: python nvflare_run.py PROBLEM TOLD."""

import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe.sim_env import SimEnv
from problem import read, started

PROBLEM = read(sys.argv[1])


def main():
    site = Path(__file__).with_name("nvflare_site.py")
    here = {"PROBLEM": str(Path(sys.argv[1]).resolve()), "TOLD": str(Path(sys.argv[2]).resolve())}
    os.environ |= here | {"PYTHONPATH": str(site.parent)}
    with tempfile.TemporaryDirectory() as workspace:
        recipe = FedAvgRecipe(name="digits", model=started(PROBLEM), min_clients=PROBLEM.cohort,
                              num_rounds=PROBLEM.rounds, train_script=str(site))  # fmt: skip
        recipe.execute(SimEnv(num_clients=len(PROBLEM.sites), num_threads=2, workspace_root=workspace))


if __name__ == "__main__":
    main()
