"""`python base.py` makes the base model: a GPT-2 of 0.45 million parameters, trained on Python's standard library.

It is written as `save_pretrained` does, into `base` beside this file; two minutes on one core.
"""

import sysconfig
from pathlib import Path

import numpy as np
import torch
from text import Windows, modules
from transformers import AutoModelForCausalLM, GPT2Config

import foedus as fd

BASE = Path(__file__).with_name("base")
CONTEXT = 128  # bytes that the model sees


def folder():
    """`base` beside this file, which is submitted with the job. Raises FoedusError."""
    if not (BASE / "config.json").is_file():
        raise fd.FoedusError(f"there is no base model in {BASE}: `python {__file__}` makes it")
    return BASE


def config(width=128, layers=2, context=CONTEXT):
    """A GPT-2 whose tokens are bytes."""
    plain = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_positions": context, "n_embd": width, "n_layer": layers, "n_head": width // 32}
    return GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, **sizes, **plain)


def pretrained(text, config, steps, batch_size=8, lr=6e-3, seed=0):
    """A model of this text; the same by the same torch on the same kind of processor."""
    torch.manual_seed(seed)
    model, windows = AutoModelForCausalLM.from_config(config), Windows(text, config.n_positions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    random = np.random.default_rng(seed)
    rows = np.concatenate([random.permutation(len(windows)) for _ in range(1 + steps * batch_size // len(windows))])
    for i in range(steps):
        chosen = rows[i * batch_size : (i + 1) * batch_size]
        ids = torch.from_numpy(np.stack([windows[int(row)]["input_ids"] for row in chosen]))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    text = b"".join(modules(sysconfig.get_path("stdlib")))
    model = pretrained(text, config(), steps=2000)
    model.save_pretrained(BASE)
    print(f"{model.num_parameters():,} parameters, trained on {len(text):,} bytes")
