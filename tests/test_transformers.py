"""Hugging Face models: only adapters travel, they are peft's own, and sites of another base or rank are told apart."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file
from torch.utils.data import default_collate
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, GPT2Config

import foedus as fd
from foedus import midway, runs
from foedus.errors import JobError
from foedus.transformers import BASE, TransformersLearner, _quiet

pytestmark = pytest.mark.long

GPT2 = GPT2Config(vocab_size=17, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
                  attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, initializer_range=0.3)  # fmt: skip
LORA = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)


class Text:
    """Sentences of a language in which each token is the last one plus `step`."""

    def __init__(self, count, seed, step=3):
        begin = np.random.default_rng(seed).integers(0, 17, count)
        self.ids = torch.from_numpy((begin[:, None] + step * np.arange(12)) % 17)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def learner(**more):
    settings = {"optimizer": partial(torch.optim.AdamW, lr=1e-2), "metrics": ["accuracy"]}
    return TransformersLearner(GPT2, LORA, **settings | more)


def split(seed, count=16):
    return fd.Split(Text(count, seed), Text(8, 100 + seed))


def test_adapters_of_a_federation_are_learnt_and_nothing_else_travels(tmp_path):
    made = learner(epochs=10, optimizer=partial(torch.optim.AdamW, lr=5e-2))
    job = fd.Job(fd.fedavg(), made, rounds=4)
    result = job.run({"a": split(0), "b": split(1)}, backend="local", seed=3)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < 0.9 * losses[0] and result.metrics["accuracy"] > 1 / 17
    layers = [f"base_model.model.transformer.h.{i}.attn.c_attn.lora_{x}.weight" for i in range(2) for x in "AB"]
    assert set(result.params) == {*layers, BASE}
    per_layer = 4 * 16 + 48 * 4  # A is (r, in), B is (out, r)
    whole = sum(map(_bytes, made.made.model.state_dict().values())) - 4 * 17 * 16  # where the tied head is twice
    assert made.bytes == {"update": 4 * 2 * per_layer, "model": whole}
    rows = runs.journal(result.folder).all("task")
    assert {(row["down"], row["up"]) for row in rows if row["work"] == "train"} == {(4 * 2 * per_layer + 64,) * 2}

    made.save(result.params, tmp_path / "adapter")  # which peft loads onto the same base
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {n: x.tolist() for n, x in saved.items()} == {n: result.params[n].tolist() for n in layers}
    with _quiet():
        loaded = peft.PeftModel.from_pretrained(made._base(), tmp_path / "adapter").eval()
    batch = {"input_ids": Text(4, 9).ids}
    made._loaded(result.params).mode(training=False)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, made.made.model(**batch).logits)


def test_a_training_that_is_cut_off_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(midway, "EVERY", 0.0)
    monkeypatch.setattr(midway, "SHARE", 0)
    start, key = learner().init(fd.key(0)), fd.key(0, 0, 0, "a", "train")
    calm = learner(epochs=2, batch_size=4).train(start, split(0), key, None)
    taken = []

    def failing(examples):
        taken.append(len(examples))
        if len(taken) == 6:
            raise OSError("the disk went away")
        return default_collate(examples)

    with midway.at(tmp_path / "midway"):
        with pytest.raises(OSError, match="went away"):
            learner(epochs=2, batch_size=4, collate=failing).train(start, split(0), key, None)
        again = learner(epochs=2, batch_size=4, collate=failing).train(start, split(0), key, None)
    assert taken == [4] * 9  # eight batches, one of them twice
    assert {n: x.tolist() for n, x in again.params.items()} == {n: x.tolist() for n, x in calm.params.items()}
    assert again.metrics["train_loss"].tolist() == calm.metrics["train_loss"].tolist()
    assert again[1:4] == calm[1:4]


def _bytes(x):
    return x.numel() * x.element_size()


def test_one_site_learns_what_plain_peft_learns_by_the_same_steps():
    made, data = learner(steps=6, batch_size=4), Text(16, 0)
    first, key = made.init(fd.key(0)), fd.key(0, 0, 0, "a", "train")
    fit = made.train(first, fd.Split(data), key, None)

    with _quiet():
        plain = peft.get_peft_model(made._base(), LORA)
        peft.set_peft_model_state_dict(plain, {n: torch.from_numpy(x.copy()) for n, x in first.items() if n != BASE})
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2)
    rows = np.concatenate([key("order").order(16, epoch) for epoch in range(2)])
    for i in range(6):
        ids = data.ids[rows[4 * i : 4 * i + 4]]
        optimizer.zero_grad()
        plain(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    expected = peft.get_peft_model_state_dict(plain, save_embedding_layers=False)
    for name, x in expected.items():
        np.testing.assert_allclose(fit.params[name], x.numpy(), rtol=0, atol=1e-6)
    assert (fit.steps, fit.examples, fit.path) == (6, 16, pytest.approx(0.06))
    moved = max(abs(fit.params[n] - first[n]).max() for n in expected)
    assert moved > 1e-3


def test_loss_and_accuracy_are_means_over_tokens():
    made = learner(batch_size=3)
    params, data = made.init(fd.key(0)), Text(8, 5)
    sums = made.evaluate(params, data, ["loss", "accuracy"])
    made._loaded(params)
    with torch.no_grad():
        logits = made.made.model.eval()(input_ids=data.ids).logits[:, :-1].flatten(0, 1)
    targets = data.ids[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits, targets).item()
    assert sums["loss"][1] == 8 * 11 and sums["loss"][0] / 88 == pytest.approx(loss, rel=1e-5)
    assert sums["accuracy"].tolist() == [int((logits.argmax(1) == targets).sum()), 88]


def test_a_site_of_lower_rank_trains_its_own_directions_and_leaves_the_others():
    made = learner(ranks={"small": 1}, steps=3)
    first = made.init(fd.key(0))
    rng = np.random.default_rng(0)
    drawn = {n: x if n == BASE else rng.normal(size=x.shape).astype(np.float32) / 4 for n, x in first.items()}
    begun = fd.Params(drawn, first.kinds)
    fit = made.train(begun, split(0), fd.key(0, 0, 0, "small", "train"), None)
    for name, x in fit.params.items():
        other = begun[name]
        if "lora_A" in name:
            assert (x[1:] == other[1:]).all() and (x[0] != other[0]).any()
        elif "lora_B" in name:
            assert (x[:, 1:] == other[:, 1:]).all() and (x[:, 0] != other[:, 0]).any()
    full = made.train(begun, split(0), fd.key(0, 0, 0, "large", "train"), None)
    assert all((full.params[n] != begun[n]).all(axis=None) for n in begun if "lora" in n)
    with pytest.raises(JobError, match="site 'a' has rank 5; it is from 1 to the model's"):
        learner(ranks={"a": 5}).train(first, split(0), fd.key(0, 0, 0, "a", "train"), None)


def test_with_a_frozen_a_the_mean_of_adapters_is_the_mean_of_their_products_at_any_rank():
    made = learner(freeze_a=True, ranks={"small": 2}, steps=3)
    job = fd.Job(fd.fedavg(), made, rounds=1, evaluate=0)
    sites = {"small": split(0, 16), "large": split(1, 48)}
    result = job.run(sites, backend="local")
    first = job.first(0)
    fits = {n: made.train(first, s, fd.key(0, 0, 0, n, "train"), None).params for n, s in sites.items()}
    for name in (n for n in first if "lora_B" in n):
        a = first[name.replace("lora_B", "lora_A")].astype(np.float64)
        assert (result.params[name.replace("lora_B", "lora_A")] == a.astype(np.float32)).all()
        mean = 0.25 * fits["small"][name] @ a + 0.75 * fits["large"][name] @ a  # 16 and 48 examples
        np.testing.assert_allclose(result.params[name] @ a, mean, atol=1e-7)
        assert (fits["small"][name][:, 2:] == 0).all() and (fits["large"][name][:, 2:] != 0).any()


def test_a_site_with_another_base_declines(tmp_path):
    first = learner().init(fd.key(0))
    other = TransformersLearner(_other_base, LORA)
    with pytest.raises(JobError, match=r"this base model has the digest .* put the same folder"):
        other.train(first, split(0), fd.key(0, 0, 0, "a", "train"), None)
    with pytest.raises(JobError, match="not abc"):
        learner(digest="abc").init(fd.key(0))
    named = learner(digest=learner().made.base)
    assert named.init(fd.key(0)) == first and named.describe()["digest"] == learner().made.base


def _other_base():
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(GPT2)


BERT = BertConfig(vocab_size=17, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                  max_position_embeddings=16, num_labels=2, hidden_dropout_prob=0.0, initializer_range=0.3,
                  attention_probs_dropout_prob=0.0)  # fmt: skip


class Labelled(Text):
    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": (self.ids[i, 0] > 8).long()}


def test_a_classifiers_head_travels_with_its_adapters_and_a_folder_is_a_base(tmp_path):
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(BERT).save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    made = TransformersLearner(tmp_path / "base", lora, auto=AutoModelForSequenceClassification, epochs=20,
                               optimizer=partial(torch.optim.AdamW, lr=1e-2), metrics=["auc"])  # fmt: skip
    sites = {name: fd.Split(Labelled(40, i), Labelled(40, 10 + i)) for i, name in enumerate("ab")}
    result = fd.Job(fd.fedprox(0.01), made, rounds=3).run(sites, backend="local")
    heads = [n for n in result.params if n.endswith(("classifier.weight", "classifier.bias"))]
    assert len(heads) == 2 and result.metrics["auc"] > 0.9


def test_embeddings_are_tuned_by_a_loss_of_ones_own_and_without_adapters_the_whole_model_travels():
    def pairs(model, batch):  # each sentence is to lie nearest to its own shift (contrastive, in the batch)
        a, b = (model(input_ids=ids).last_hidden_state.mean(1) for ids in (batch["a"], batch["b"]))
        return torch.nn.functional.cross_entropy(a @ b.T, torch.arange(len(a)))

    class Pairs(Text):
        def __getitem__(self, i):
            return {"a": self.ids[i, :6], "b": self.ids[i, 6:]}

    made = TransformersLearner(
        BERT, auto=AutoModel, loss=pairs, epochs=2, optimizer=partial(torch.optim.AdamW, lr=1e-2)
    )
    result = fd.Job(fd.fedavg(), made, rounds=3).run({"a": fd.Split(Pairs(24, 0), Pairs(16, 1))}, backend="local")
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert "embeddings.word_embeddings.weight" in result.params and BASE not in result.params
    with pytest.raises(JobError, match=r"give lora=peft\.LoraConfig"):
        TransformersLearner(BERT, ranks={"a": 1})


def test_a_job_is_the_same_before_and_after_its_model_is_made_and_in_every_process():
    lora = peft.LoraConfig(r=2, target_modules=["c_attn", "c_proj", "c_fc"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    job = fd.Job(fd.fedavg(), TransformersLearner(GPT2, lora, optimizer=partial(torch.optim.AdamW, lr=1e-2)), rounds=1)
    before, config = job.digest, json.dumps(lora.to_dict(), default=sorted)
    job.learner.init(fd.key(0))
    assert job.digest == before and json.dumps(lora.to_dict(), default=sorted) == config
    assert "['c_attn', 'c_fc', 'c_proj']" in json.dumps(job.describe())
