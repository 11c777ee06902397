"""`rayunlearn plan` on every experiment, preset and recipe, without Ray, and what each of their
trials needs of a GPU, as a cluster with GPUs asks it.

Benchmarks and models are stand-ins under the names that the files give: the same layouts and
architectures, small.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from rayunlearn.cli import main
from rayunlearn.config import Trial, Value, with_values
from rayunlearn.data import benchmarks, checksums
from rayunlearn.data.documents import Document
from rayunlearn.experiment import LAPTOP, load
from rayunlearn.models.load import save_model
from rayunlearn.planning.gpu_memory import estimate_gpu_memory, peak_bytes
from rayunlearn.planning.planner import grid_groups
from rayunlearn.recipes import RECIPES, values
from rayunlearn.registry import check_trial
from rayunlearn.train.adapters import ADAPTERS
from rayunlearn.trial import domain, known
from rayunlearn.trial.ask import Knowledge
from rayunlearn.trial.workspace import validate_trial

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
PRESETS = [
    (name, preset)
    for name in EXPERIMENTS
    for preset in (LAPTOP, "paper")
    if preset == LAPTOP or '"paper": {' in (ROOT / f"experiments/{name}.py").read_text("utf-8")
]
# as deep as most presets need; those of which one names a deeper block are deeper
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 8,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "pad_token_id": None,
}
WIDE = SHAPE | {"intermediate_size": 24}
DEEP = WIDE | {"num_hidden_layers": 16}
DEEPEST = WIDE | {"num_hidden_layers": 21}
LLAMA = LlamaConfig(**WIDE)
MODELS: dict[str, PreTrainedConfig] = {
    "HuggingFaceH4/zephyr-7b-beta": MistralConfig(**DEEP, num_key_value_heads=1),
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA,
    "meta-llama/Llama-2-7b-chat-hf": LlamaConfig(**DEEPEST),
    "muse-bench/MUSE-news_target": LLAMA,
    "muse-bench/MUSE-books_target": LLAMA,
    "open-unlearning/tofu_Llama-3.2-1B-Instruct_full": LLAMA,
    "01-ai/Yi-34B-Chat": LlamaConfig(**DEEP),
    "microsoft/phi-1_5": PhiConfig(**DEEPEST),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": MixtralConfig(
        **WIDE, num_key_value_heads=1, num_local_experts=2
    ),
    "facebook/opt-1.3b": OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=16),
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to stand in: the models and benchmarks under the names that presets give them."""
    root = tmp_path_factory.mktemp("stand_ins")
    for name, config in MODELS.items():
        torch.manual_seed(0)
        save_model(AutoModelForCausalLM.from_config(config), tokenizer(), root / name)
    texts = [{"text": " ".join(f"w{(i * i + n) % 40}" for i in range(30 + n))} for n in range(12)]
    questions = [{"question": f"w{n} ?", "answer": f"w{n + 1}"} for n in range(12)]
    choices = [
        {"question": f"w{n} ?", "choices": ["w1", "w2", f"w{n + 3}", "w39"], "answer": 2}
        for n in range(12)
    ]
    tables = {"wmdp/wmdp-bio/test": choices, "muse-news/verbmem/forget": verbatim()}
    tables |= {f"{corpus}/mmlu/all/test": subjects(choices) for corpus in ("wmdp", "biology")}
    tables["mmlu/all/test"] = domain_questions()
    for corpus in ("muse-news", "muse-books"):
        tables |= {f"{corpus}/verbmem/forget": verbatim()}
        for table in ("raw/forget", "raw/retain1", "privleak/forget", "privleak/holdout"):
            tables[f"{corpus}/{table}"] = texts
        for table in ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl"):
            tables[f"{corpus}/knowmem/{table}"] = questions
    for table, rows in tables.items():
        file = root / f"{table}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
    lines = {f"wmdp/{name}": texts for name in ("bio_remove_dataset", "bio-retain-corpus")}
    passages = {"forget": texts[:6], "retain": texts[6:], "near": verbatim_answers()}
    passages |= dict.fromkeys(("probe_forget", "probe_retain", "untouched"), verbatim_answers())
    lines |= {f"runs/books-real/{name}": rows for name, rows in passages.items()}
    full = [{**row, "paraphrased_answer": "w1", "perturbed_answer": ["w2"]} for row in questions]
    for size, rest in (("05", "95"), ("10", "90")):
        lines |= {f"tofu/forget{size}": questions, f"tofu/retain{rest}": questions}
        lines |= {f"tofu/forget{size}_perturbed": full}
    for name in ("retain", "real_authors", "world_facts"):
        lines[f"tofu/{name}_perturbed"] = full
    for name, rows in lines.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.json{'' if name.startswith('tofu') else 'l'}").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    for side in ("Wikipedia_Biology", "Wikipedia_History_Concepts-in-Physics_Philosophy"):
        (root / "biology" / side).mkdir(parents=True)
        (root / "biology" / side / "a.txt").write_text(texts[0]["text"], encoding="utf-8")
    return root


def verbatim() -> list[dict[str, str]]:
    return [{"prompt": f"w{n}", "gt": f"w{n + 1}"} for n in range(12)]


def verbatim_answers() -> list[dict[str, str]]:
    return [{"prompt": row["prompt"], "answer": row["gt"]} for row in verbatim()]


def subjects(choices: list[dict[str, object]]) -> list[dict[str, object]]:
    """MMLU's rows: half of them of a biology subject."""
    of = ("virology", "astronomy")
    return [
        {**row, "question": f"w{n} w{n} ?", "subject": of[n % 2]} for n, row in enumerate(choices)
    ]


def domain_questions() -> list[dict[str, object]]:
    """MMLU's rows of the subjects of `pretrained_mmlu.py`."""
    return [
        {
            "question": f"w{n} w{n + 1} w{number} ?",
            "choices": [f"w{n}", f"w{n + 1}", f"w{n + 2}", f"w{n + 3}"],
            "answer": n % 4,
            "subject": subject,
        }
        for number, subject in enumerate(("anatomy", "human_aging", "marketing"))
        for n in range(12)
    ]


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", "</s>", *(f"w{n}" for n in range(50)), "?", "Question", "Answer", ":"]
    made = Tokenizer(WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


@pytest.fixture(autouse=True)
def standing_there(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the folder of the stand-ins, whose rows nobody recorded. A real model counts as knowing
    every fact and every answer: to ask it takes minutes, and tests/trial/test_known.py and
    tests/trial/test_domain.py do.
    """
    monkeypatch.chdir(stand_ins)
    monkeypatch.setattr(known, "ask", knows_everything)
    monkeypatch.setattr(domain, "choose", answers_everything)
    # what a stand-in says is kept nowhere
    for asking in (known, domain):
        monkeypatch.setattr(asking, "user_cache", lambda _: None)
    monkeypatch.setenv("MMLU", str(stand_ins / "mmlu"))
    monkeypatch.setattr(checksums, "MMLU", checksums.NO_CHECKSUMS)
    for name, row in benchmarks.LOADERS.items():
        monkeypatch.setitem(benchmarks.LOADERS, name, replace(row, recorded=checksums.NO_CHECKSUMS))
    yield


def knows_everything(
    _model: object, _tokenizer: object, facts: list[Document], *_: object
) -> list[Knowledge]:
    return [Knowledge(key=1.0, paraphrase=1.0, completion=1.0, margin=1.0) for _ in facts]


def answers_everything(
    _model: object, _tokenizer: object, questions: list[Document], *_: object
) -> list[bool]:
    return [True] * len(questions)


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `rayunlearn plan` prints; it must have ended well and said what a GPU must have."""
    assert main(["plan", *words, "--output", "runs"]) == 0
    printed = capsys.readouterr().out
    assert "GPU" in printed and "no estimate" not in printed, printed[-1000:]
    return printed


@pytest.mark.parametrize(("name", "preset"), PRESETS, ids=lambda value: str(value))
def test_every_experiment_and_preset_is_planned_with_what_it_needs_of_a_gpu(
    name: str, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = planned(capsys, str(ROOT / f"experiments/{name}.py"), "--preset", preset)
    assert " trials: 0 finished" in printed


MANY = '''"""Question."""
from rayunlearn.config import Trial, with_values
BASE = with_values(Trial(), {"method.layer": 1})
AXES = {
    "method.forget": ("npo", "rmu"),
    "select.name": ("random", "loss"),
    "select.ratio": tuple(i / 20 for i in range(1, 21)),
    "train.seed": tuple(range(SEEDS)),
}
'''


def test_a_plan_of_many_cells_is_a_summary_and_all_prints_each(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "many.py").write_text(MANY.replace("SEEDS", "2"))
    summary = planned(capsys, "many.py")
    # two selectors share the full forget set: 2 x 19 + 1 cells of each method and seed
    grid = [line.split() for line in summary.splitlines() if line.startswith("grid")]
    assert [(row[1], row[-2]) for row in grid] == [("npo", "78"), ("rmu", "78")]
    assert "0.05 to 1 (20)" in summary and "81 cells; --all prints each" in summary
    whole = planned(capsys, "many.py", "--all")
    assert sum(line.startswith("grid") for line in whole.splitlines()) == 78


@pytest.mark.slow
def test_thirty_thousand_trials_are_planned_in_little_time_and_memory(tmp_path: Path) -> None:
    """In a process of its own. Measured: 8 s of CPU and 171 MiB; the bound on time leaves room
    for a busy machine.
    """
    (tmp_path / "many.py").write_text(MANY.replace("SEEDS", "380"))
    # the high-water mark of this process alone: ru_maxrss would begin with the parent's
    code = (
        "import time; from pathlib import Path; from rayunlearn.cli.main import main;"
        "main(['plan', 'many.py', '--output', 'runs']);"
        "peak = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0];"
        "print(time.process_time(), int(peak) / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    seconds, mebibytes = map(float, done.stdout.split()[-2:])
    assert len(done.stdout.splitlines()) < 40 and "trials: 0 finished" in done.stdout
    assert seconds < 60 and mebibytes < 320


SMALL = '''"""Question."""
from rayunlearn.config import Data, Trial
BASE = Trial(data=Data(name="wmdp-bio", path="wmdp", options="corpora=true"))
AXES = {"select.ratio": (0.5, 1.0)}
'''


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_planned_with_what_it_needs_of_a_gpu(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "small.py"
    file.write_text(SMALL, encoding="utf-8")
    printed = planned(capsys, str(file), "--recipe", name)
    assert str(values(name)["method.forget"]) in printed


@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_what_a_trial_needs_is_what_the_plan_says_for_every_adapter(
    adapter: str, tmp_path: Path
) -> None:
    """The plan keeps of a trial what memory depends on: an adapter's own options are among it."""
    options: Mapping[str, Value] = {"lora.rank": 4, "lora.alpha": 8} if adapter == "lora" else {}
    trial = validate_trial(
        with_values(Trial(), {"train.adapter": adapter, "method.layer": 1, **options})
    )
    assert estimate_gpu_memory([trial], tmp_path).peak == peak_bytes.__wrapped__(trial) > 0


def test_the_lora_arms_of_an_experiment_are_among_the_trials_that_are_measured(
    tmp_path: Path,
) -> None:
    """So that the contract above would have noticed a plan that ends for them."""
    experiment = load(ROOT / "experiments/methods.py")
    cells = [cell for group in grid_groups(experiment, check=check_trial) for cell in group.cells]
    with_adapter = [cell for cell in cells if cell.train.adapter == "lora"]
    assert len(with_adapter) == 4 and estimate_gpu_memory(with_adapter, tmp_path).peak > 0
