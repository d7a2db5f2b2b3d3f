"""The gallery's docstrings: what is read and how it is divided, and that adapters alone travel, with a tiny base."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import foedus as fd
from foedus import jobfile, runs

FOLDER = Path(__file__).parents[1] / "examples" / "language" / "docstrings"


@pytest.fixture(scope="module")
def text():
    spec = importlib.util.spec_from_file_location("docstrings_text", FOLDER / "text.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def written(root, files):
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    return str(root)


SOURCE = '''"""Of the module."""
raise SystemExit("this was run")

class A:
    """Of the class."""

    def f(self):
        """Of the
        method."""

async def g():
    """Of the function, \\d."""
    return """No docstring."""
'''


def test_docstrings_are_read_of_files_that_must_not_run(text, tmp_path):
    files = {"b/c.py": SOURCE, "a.py": '"""First."""', "d.py": '"""First."""\ndef f():\n    """Third."""'}
    files |= {"b/tests/t.py": '"""Of a test."""', "e.py": '"""Of no Python."""\nprint "1"', "f.txt": '"""Of none."""'}
    found = text.modules(written(tmp_path, files))
    second = b"Of the module.\n\0Of the class.\n\0Of the function, \\d.\n\0Of the\nmethod.\n\0"  # level by level
    assert found == (b"First.\n\0", second, b"Third.\n\0")  # by path; what was there before is not there again


def test_packages_are_found_and_none_is_imported(text):
    said = (
        "import sys, text\n"
        "for name in text.PACKAGES: text.docstrings((text.folder(name) / '__init__.py').read_bytes())\n"
        "print({*text.PACKAGES} & {*sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", said], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert run.stdout == "{'numpy'}\n"  # which foedus itself imports
    with pytest.raises(fd.FoedusError, match="nowhere is not installed: pip install it, or name a folder"):
        text.folder("nowhere")


def test_a_module_is_in_one_part_only_and_parts_have_their_sizes(text):
    texts = [bytes([i]) * (40 + i) for i in range(30)]  # each of a byte of its own, 40 to 69 of it
    sizes = {"test": 200, "valid": 90, "train": 400}
    parts = text.divided(texts, np.random.default_rng(1), sizes)
    assert {name: len(held) for name, held in parts.items()} == sizes
    inside = [set(held) for held in parts.values()]
    assert sum(map(len, inside)) == len(set.union(*inside))
    for held in parts.values():
        *before, last = dict.fromkeys(held)  # only the last module of a part is cut
        assert all(held.count(i) == 40 + i for i in before) and held.count(last) <= 40 + last
    again, other = (text.divided(texts, np.random.default_rng(seed), sizes) for seed in (1, 2))
    assert again == parts != other


def test_a_part_ends_where_there_are_no_more_modules_and_none_is_all_of_it(text):
    parts = text.divided([b"x" * 10_000], np.random.default_rng(0), {"test": 6_000, "train": 100})
    assert parts == {"test": b"x" * text.LONGEST, "train": b""}
    assert min(text.PARTS.values()) > text.LONGEST


def test_each_byte_but_the_first_is_told_once_and_the_rest_of_a_window_is_left_out(text):
    for more in (0, 1, 2):  # 10 bytes have room for three windows of 4, and 13 for a fourth
        windows = text.Windows(bytes(range(10 + more)), 4)
        found = [windows[i]["input_ids"].tolist() for i in range(len(windows))]
        assert found == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
        assert all((windows[i]["labels"] == windows[i]["input_ids"]).all() for i in range(3))
    assert [len(text.Windows(b"x" * n, 4)) for n in (0, 1, 3, 4, 13)] == [0, 0, 0, 1, 4]


# Runs of a GPT-2 with one layer of width 32, trained for three steps: nothing here hangs on what it has learnt.

ACROSS = {"attn.c_attn": (32, 96), "attn.c_proj": (32, 32), "mlp.c_fc": (32, 128), "mlp.c_proj": (128, 32)}  # in, out
NUMBERS = 32 + 96 + 32 + 32 + 32 + 128 + 128 + 32  # of a rank
WHOLE = 256 * 32 + 128 * 32 + 3 * 2 * 32 + sum(a * b + b for a, b in ACROSS.values())  # embeddings, norms, layers
DIGEST = 16 * 4  # bytes, which travel beside adapters
WORDS = ["array", "axis", "shape", "dtype", "float", "index", "value", "returns", "default"]


def organisation(root, seed):
    rng = np.random.default_rng(seed)
    lines = [[" ".join(rng.choice(WORDS, 40)) for _ in range(2)] for _ in range(12)]
    return written(root, {f"{i}.py": f'"""{a}"""\ndef f():\n    """{b}"""' for i, (a, b) in enumerate(lines)})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The job's module with a tiny base and short parts; and two organisations, of which numpy trains rank 2 alone."""
    root = tmp_path_factory.mktemp("language")
    with pytest.MonkeyPatch.context() as patch:
        made = jobfile.imported(FOLDER / "job.py")
        patch.setattr(made.base, "BASE", root / "base")
        with pytest.raises(fd.FoedusError, match=r"there is no base model in .*base: `python .*base\.py` makes it"):
            made.job()
        for part, size in {"test": 1400, "valid": 700, "train": 2100}.items():
            patch.setitem(sys.modules["text"].PARTS, part, size)
        base = made.base.pretrained(b"shape of the array\n\0" * 200, made.base.config(width=32, layers=1), steps=3)
        base.save_pretrained(root / "base")
        sites = {name: organisation(root / name, i) for i, name in enumerate(("numpy", "scipy"))}
        yield made, sites


@pytest.fixture(scope="module")
def done(tiny):
    made, sites = tiny
    return made.job(rounds=2, rank=4, steps=3).run(sites, seed=1, backend="local")


def sent(result):
    """(down, up) of every Task that trained, in bytes."""
    return {(row["down"], row["up"]) for row in runs.journal(result.folder).all("task") if row["work"] == "train"}


def test_adapters_travel_and_nothing_else(tiny, done):
    made, sites = tiny
    at = "base_model.model.transformer.h.0"
    a = {f"{at}.{name}.lora_A.weight": (4, rows) for name, (rows, _) in ACROSS.items()}
    b = {f"{at}.{name}.lora_B.weight": (columns, 4) for name, (_, columns) in ACROSS.items()}
    assert {name: x.shape for name, x in done.params.items()} == a | b | {"base/digest": (16,)}
    assert sent(done) == {(4 * 4 * NUMBERS + DIGEST,) * 2}
    assert all(np.abs(done.params[name]).max() > 0 for name in b)  # which begin as zeros
    for rank in (1, 8):
        once = made.job(rounds=1, rank=rank, steps=1).run(sites, backend="local")
        assert sent(once) == {(4 * rank * NUMBERS + DIGEST,) * 2}
    once = made.job(rounds=1, rank=0, steps=1).run(sites, backend="local")
    assert sent(once) == {(4 * WHOLE,) * 2}


def test_a_site_of_lower_rank_changes_its_own_directions_alone_and_sends_as_many_numbers(tiny, done):
    made, sites = tiny
    job, changed = made.job(rank=4, steps=3), {}
    for site in ("numpy", "scipy", "pandas"):
        split = made.load(fd.data.Site(site, sites["scipy"], fd.key(1, site)))
        fit = job.learner.train(done.params, split, fd.key(1, 0, 0, site, "train"), None)
        assert fit.params.nbytes == done.params.nbytes
        changed[site] = sum(int((x != done.params[name]).sum()) for name, x in fit.params.items())
    assert changed == {"numpy": 2 * NUMBERS, "scipy": 4 * NUMBERS, "pandas": 4 * NUMBERS}
    assert made.RANKS == {"numpy": 2, "pandas": 4}


def test_measured_bits_are_those_of_torch_with_the_product_of_adapters_added_by_hand(tiny, done):
    import torch
    from transformers import AutoModelForCausalLM

    made, sites = tiny
    plain = AutoModelForCausalLM.from_pretrained(made.base.folder()).eval()
    for name in ACROSS:
        a, b = (done.params[f"base_model.model.transformer.h.0.{name}.lora_{x}.weight"] for x in "AB")
        plain.get_submodule(f"transformer.h.0.{name}").weight.data += 2 * torch.from_numpy(b @ a).T  # alpha is 2 r
    every = []
    for site, path in sites.items():
        parts = made.divided(made.modules(path), fd.key(1, site, "split").numpy())
        assert [len(held) for held in parts.values()] == [1400, 700, 2100]
        ids = torch.tensor([list(parts["test"][i : i + 128]) for i in range(0, 1400 - 127, 127)])
        assert ids.shape == (11, 128)
        with torch.no_grad():
            chances = plain(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])
        every.append(-chances.numpy() / np.log(2))
        assert done.per_site[site]["test_loss"] == pytest.approx(every[-1].mean(), abs=1e-5)
    assert done.metrics["test_loss"] == pytest.approx(np.mean(every), abs=1e-5)


def test_untuned_is_the_base_as_it_is(tiny):
    made, sites = tiny
    found = made.untuned().run(sites, seed=1, backend="local").params
    assert all((x == 0).all() for name, x in found.items() if "lora_B" in name)


@pytest.mark.long
def test_tuned_at_home_leaves_the_federated_model_as_it_was(tiny):
    made, sites = tiny
    two = made.job(rounds=2, rank=4).run(sites, seed=1, backend="local")
    job = made.tuned(rounds=2, tuning=1, rank=4)
    more = job.run(sites, seed=1, backend="local")
    assert more.params == two.params
    assert more.metrics["personal_test_loss"] != two.metrics["test_loss"]
    assert [job.learner.schedule(round) for round in range(3)] == [1.0, 1.0, 0.2]


@pytest.mark.long
def test_a_llama_in_bfloat16_goes_by_the_same_job_and_its_adapters_travel_in_four_bytes_or_two(tiny, tmp_path):
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, LlamaConfig

    made, sites = tiny
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=256, max_position_embeddings=128, **sizes)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    learner = made.TransformersLearner(tmp_path, lora, dtype=torch.bfloat16, steps=2, ranks=made.RANKS)
    job = made.job(rounds=1).replace(learner=learner)
    numbers = 2 * 2 * (8 * 64 + 64 * 8)  # layers, q and v, A and B
    assert sent(job.run(sites, backend="local")) == {(4 * numbers + DIGEST,) * 2}
    ups = {up for _, up in sent(job.replace(compress=fd.bf16()).run(sites, backend="local"))}
    assert ups == {2 * numbers + DIGEST}


@pytest.mark.long
def test_the_arithmetic_of_a_model_of_seven_billion():
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from foedus.transformers import _quiet

    with torch.device("meta"):  # shapes, and no numbers
        model = LlamaForCausalLM(LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                                             num_attention_heads=32, vocab_size=32000))  # fmt: skip
        # embeddings and head; of a layer q, k, v, o, three of the MLP and two norms; the last norm
        whole = 2 * 32000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
        assert model.num_parameters() == whole == 6_738_415_616
        lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        with _quiet():
            trained = [p.numel() for p in get_peft_model(model, lora).parameters() if p.requires_grad]
    assert sum(trained) == 32 * 2 * (8 * 4096 + 4096 * 8) == 4_194_304
