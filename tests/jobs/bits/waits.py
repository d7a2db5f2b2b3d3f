"""Sites that finish in an order of their own, and whose bits must not care."""

import time

import numpy as np


def waiting(job, order, most):
    """The Job, whose sites wait up to `most` seconds before they return; named by order, round, task and site."""

    def late(work):
        def then(payload, local, site):
            found = work(payload, local, site)
            names = site.key("wait").numpy().integers(2**32, size=4)
            time.sleep(most * np.random.default_rng([order, *names]).random())
            return found

        return then

    works = job.algorithm.works
    return job.replace(algorithm=job.algorithm._replace(works={**works, "train": late(works["train"])}))
