"""Five organisations adapt one language model to their documentation: LoRA, of which adapters alone travel.

`foedus compare` on this file compares the methods below; `foedus run` simulates the first.
"""

from functools import partial
from math import log
from pathlib import Path

import base
import torch
from peft import LoraConfig
from text import PACKAGES, Windows, divided, folder, modules

import foedus as fd
from foedus.transformers import TransformersLearner

RANKS = {"numpy": 2, "pandas": 4}  # smaller machines; the others train all of the Job's rank


def load(site):
    """The docstrings of the site's folder of Python files, by module in three parts, for each seed others."""
    parts = divided(modules(str(site.data)), fd.key(int(site.key.names[0]), site.name, "split").numpy())
    return fd.Split(**{part: Windows(text, base.CONTEXT) for part, text in parts.items()})


def bits(model, batch):
    """The loss in bits per byte, for a token is a byte."""
    return model(**batch).loss / log(2)


def adapters(rank):
    """LoRA on all that is linear in a GPT-2 but its head."""
    targets = ["c_attn", "c_proj", "c_fc"]
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=True)


def job(algorithm=None, lr=5e-3, rounds=4, rank=8, steps=0, schedule=None):
    """Once through a site's text a round, or so many steps; rank 0: the whole model is trained, and travels."""
    ranks = {site: min(own, rank) for site, own in RANKS.items()} if rank else None
    learner = TransformersLearner(
        base.folder(), adapters(rank) if rank else None, loss=bits, optimizer=partial(torch.optim.AdamW, lr=lr),
        steps=steps or None, schedule=schedule, ranks=ranks,
    )  # fmt: skip
    return fd.Job(algorithm or fd.fedavg(), learner, load, rounds=rounds, best="loss", files=["base/*"])


def gentler(after, round):
    """The factor of lr: a fifth of it at home."""
    return 1.0 if round < after else 0.2


def tuned(lr=5e-3, rounds=4, tuning=2, rank=8):
    """The federated model, trained on at home."""
    schedule = partial(gentler, rounds)
    return job(fd.fine_tuned(after=rounds), lr=lr, rounds=rounds + tuning, rank=rank, schedule=schedule)


def untuned():
    """The base as it is: a step of no length."""
    return job(lr=0.0, rounds=1, steps=1)


def sites():
    """package -> its folder, where no other sites are given."""
    return {name: str(folder(name)) for name in PACKAGES}


methods = {"FedAvg": job, "personalised": tuned, "base": untuned}


def differences(study, pairs):
    """Prints them, seed by seed, by site and of the mean."""
    for one, other in pairs:
        for site in (*study.sites, "mean"):
            mean, half = study.difference(one, other, of=site)
            print(f"{one} less {other}, {site}: {mean:+.3f} ± {half:.3f}")


if __name__ == "__main__":
    how = {"sites": sites(), "backend": "local", "say": print}
    study = fd.compare(methods, seeds=range(5), references=["alone", "pooled"], **how)
    print(study.table(), study.by_site(), sep="\n")
    pairs = [("FedAvg", "alone"), ("personalised", "alone"), ("base", "FedAvg"), ("personalised", "FedAvg")]
    differences(study, [*pairs, ("pooled", "FedAvg")])
    some = {name: methods[name] for name in ("FedAvg", "base")}
    unseen = fd.compare(some, seeds=range(3), references=["unseen-site"], **how)
    print(unseen.by_site())
    differences(unseen, [("unseen-site", "FedAvg"), ("unseen-site", "base")])
    print("rounds", {name: study.interval(name, "rounds").mean for name in study.by_method})
    study.plot(path=Path(__file__).with_name("study.svg"))
