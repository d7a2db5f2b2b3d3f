"""One small Job for each library: rows drawn by the site's name, so that a simulation has the same."""

from functools import partial

import torch

import foedus as fd


def rows(site):
    x = torch.randn(24, 4, generator=fd.key(0, site.name).torch())
    return fd.Split(torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long()))


class Sentences:
    def __init__(self, site):
        self.first = len(site.name)

    def __len__(self):
        return 12

    def __getitem__(self, i):
        ids = (self.first + i + torch.arange(8)) % 17
        return {"input_ids": ids, "labels": ids}


def lightning():
    from lightning import LightningModule

    from foedus.lightning import LightningLearner

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    return LightningLearner(Module, batch_size=8), rows


def transformers():
    import peft
    from transformers import GPT2Config

    from foedus.transformers import TransformersLearner

    base = GPT2Config(vocab_size=17, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    learner = TransformersLearner(base, lora, optimizer=partial(torch.optim.AdamW, lr=1e-2))
    return learner, lambda site: fd.Split(Sentences(site), Sentences(site))


def monai():
    from monai.transforms import RandCropByPosNegLabeld

    from foedus.monai import MonaiLearner, dice, unet, volumes

    crop = RandCropByPosNegLabeld(["image", "label"], "label", (8, 8), num_samples=2)
    learner = MonaiLearner(unet(2, channels=(4, 8)), augment=crop, window=(8, 8), metrics=[dice(2)])
    return learner, lambda site: fd.Split(volumes(site.data, slices=True))


def table(site):
    """Numbers for libraries without torch."""
    x = fd.key(0, site.name).numpy().normal(size=(60, 4))
    return fd.Split((x, (x.sum(1) > 0).astype(int)))


def sklearn():
    from sklearn.linear_model import SGDClassifier

    from foedus.sklearn import SklearnLearner

    return SklearnLearner(SGDClassifier(loss="log_loss"), features=4, classes=[0, 1]), table, fd.fedavg()


def forest():
    from sklearn.ensemble import RandomForestClassifier

    from foedus.sklearn import SklearnLearner

    learner = SklearnLearner(RandomForestClassifier(3, max_depth=3), features=4, classes=[0, 1])
    return learner, table, fd.union(learner)


def lightgbm():
    from foedus.lightgbm import LightGBMLearner

    learner = LightGBMLearner({"objective": "binary", "num_leaves": 4, "min_data_in_leaf": 5}, 4, [0, 1], trees=2)
    return learner, table, fd.union(learner)


def jax():
    import flax.linen as nn
    import optax

    from foedus.jax import JaxLearner

    losses = optax.softmax_cross_entropy_with_integer_labels
    return JaxLearner(nn.Dense(2), losses, optimizer=optax.adam(1e-2), inputs=4, batch_size=8), table


def job(learner="lightning"):
    made, load, *algorithm = globals()[learner]()
    return fd.Job(*(algorithm or [fd.fedprox(0.01)]), made, load, rounds=2, privacy="none")
