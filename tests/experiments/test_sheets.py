"""Every recipe and every preset held against what was read of its paper and its code, value by
value.

The tables below were written from the sources and not from the package: a value, and where it was
read. `open` begins what no source that was read states: such a value must not be called confirmed.
Conventions in which we differ from a source stand beside the value that they change.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rayunlearn.config import Trial, Value, flatten, with_values
from rayunlearn.experiment import LAPTOP, Experiment, load
from rayunlearn.methods.loss_inputs import control_direction
from rayunlearn.planning.planner import grid_groups
from rayunlearn.recipes import RECIPES, values
from rayunlearn.registry import check_trial, option_names

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
Sheet = dict[str, tuple[Value, str]]


def read(source: str, **settings: Value) -> Sheet:
    """Values that one source states; `train__length` stands for `train.length`."""
    return {name.replace("__", "."): (value, source) for name, value in settings.items()}


def left_open(**settings: Value) -> Sheet:
    """Values that no source that was read states."""
    return read("open", **settings)


# --- WMDP (Li et al. 2403.03218), code of cais/wmdp, and its three released runs -----------------
# Blocks count from 0 there too, and the direction is normalised, so steering is the target's
# length. The code's means run over the hidden dimension as ours do (the paper writes squared
# norms), so that its weight of the retain term is on our scale.
CAIS = "cais/wmdp rmu/unlearn.py"
OPTIMIZER: dict[str, Value] = {
    "train__weight_decay": 0.0,
    "train__schedule": "constant",
    "train__warmup_fraction": 0.0,
    # gradients are not clipped
    "train__max_grad_norm": 1e9,
}
RMU: dict[str, Value] = {"method__forget": "rmu", "method__retain": "activation"}


def down_proj(blocks: str) -> str:
    """Index 6 of a Llama or Mistral block's parameters is the down projection."""
    return rf"layers\.({blocks})\.mlp\.down_proj\.weight$"


RMU_SHEETS = {
    "rmu_zephyr_wmdp": read(
        CAIS,
        model__name="HuggingFaceH4/zephyr-7b-beta",
        model__teach=False,
        rmu__steering=6.5,
        method__retain_weight=1200.0,
        method__layer=7,
        train__parameters=down_proj("5|6|7"),
        train__learning_rate=5e-5,
        train__batch_size=4,
        train__unit="steps",
        train__length=150.0,
        data__max_tokens=512,
        **RMU,
        **OPTIMIZER,
    ),
    "rmu_yi_wmdp": read(
        CAIS,
        model__name="01-ai/Yi-34B-Chat",
        model__teach=False,
        rmu__steering=300.0,
        method__retain_weight=350.0,
        method__layer=15,
        train__parameters=down_proj("13|14|15"),
        train__batch_size=2,
        train__unit="steps",
        train__length=400.0,
        **RMU,
        **OPTIMIZER,
    )
    | left_open(train__learning_rate=5e-5, data__max_tokens=512),
    "rmu_mixtral_wmdp": read(
        CAIS,
        rmu__steering=300.0,
        method__retain_weight=1600.0,
        method__layer=7,
        train__batch_size=2,
        train__unit="steps",
        train__length=400.0,
        **RMU,
        **OPTIMIZER,
    )
    | left_open(
        model__name="mistralai/Mixtral-8x7B-Instruct-v0.1",
        model__teach=False,
        # index 7 was w3 of expert 0 in the library of 2024; experts are one tensor now
        train__parameters=r"layers\.(5|6|7)\..*experts",
        train__learning_rate=5e-5,
        data__max_tokens=512,
    ),
}

# --- Fan et al. 2502.05374, code of Unlearn-Smooth: WMDP-bio on Zephyr, 125 steps of 1 x 4 -------
# Its NPO ratio is a mean per token, ours a sum: beta stands here as released, on another scale.
SMOOTH = "OPTML-Group/Unlearn-Smooth run_wmdp_unlearn.sh"
SMOOTH_OPEN: dict[str, Value] = {
    "method__retain": "nll",
    "data__max_tokens": 512,
    "train__schedule": "linear",
    "train__warmup_fraction": 0.1,
    "train__weight_decay": 0.0,
    "train__max_grad_norm": 1.0,
}
SMOOTH_RUN: dict[str, Value] = {
    "model__name": "HuggingFaceH4/zephyr-7b-beta",
    "model__teach": False,
    "method__forget": "npo",
    "train__batch_size": 4,
    "train__accumulation": 4,
    "train__unit": "steps",
    "train__length": 125.0,
}
SMOOTH_SHEETS = {
    "npo_zephyr_wmdp": read(
        SMOOTH,
        npo__beta=0.0225,
        method__retain_weight=1.0,
        train__learning_rate=5e-6,
        **SMOOTH_RUN,
    )
    | left_open(**SMOOTH_OPEN),
    "npo_sam_zephyr_wmdp": read(
        SMOOTH,
        npo__beta=0.015,
        method__retain_weight=2.25,
        train__learning_rate=5e-6,
        method__wrappers="sam",
        sam__radius=0.01,
        **SMOOTH_RUN,
    )
    | left_open(**SMOOTH_OPEN),
    "npo_average_zephyr_wmdp": read(
        SMOOTH,
        npo__beta=0.05,
        method__retain_weight=2.0,
        train__learning_rate=5.5e-6,
        method__wrappers="average",
        # from step 100 of 125, every fifth
        average__start=100 / 125,
        average__every=5,
        **SMOOTH_RUN,
    )
    | left_open(**SMOOTH_OPEN),
}

# --- MUSE: NPO of Unlearn-Smooth, epochs of table B1 of the coreset study ------------------------
TABLE_B1 = "Pal et al. 2504.10185, table B1"
MUSE_RUN: dict[str, Value] = {
    "method__forget": "npo",
    "npo__beta": 0.1,
    "method__retain_weight": 1.0,
    "train__learning_rate": 1e-5,
    "train__batch_size": 4,
    # chunks of 2,048 tokens
    "data__max_tokens": 2048,
}
MUSE_OPEN: dict[str, Value] = {
    "model__teach": False,
    "method__retain": "nll",
    # open-unlearning's MUSE runs have a constant rate
    "train__schedule": "constant",
    "train__warmup_fraction": 0.0,
    "train__weight_decay": 0.0,
    "train__max_grad_norm": 1.0,
}
MUSE_SHEETS = {
    f"npo_muse_{corpus}": read("OPTML-Group/Unlearn-Smooth MUSE/README.md", **MUSE_RUN)
    | read(TABLE_B1, train__unit="epochs", train__length=epochs)
    | left_open(model__name=f"muse-bench/MUSE-{corpus}_target", **MUSE_OPEN)
    for corpus, epochs in (("news", 10.0), ("books", 1.0))
}

# --- TOFU: SimNPO's own repository, and open-unlearning's configuration --------------------------
SIMNPO = "OPTML-Group/Unlearn-Simple TOFU"
SIMNPO_RUN: dict[str, Value] = {
    "method__forget": "simnpo",
    "simnpo__delta": 0.0,
    "method__retain": "nll",
    "train__learning_rate": 1e-5,
    "train__unit": "epochs",
    "train__length": 10.0,
    # 8 devices x 1 x 4
    "train__batch_size": 8 * 1 * 4,
}
TOFU_OPEN: dict[str, Value] = {
    "train__schedule": "linear",
    "train__max_grad_norm": 1.0,
    "data__max_tokens": 256,
}
OPEN_UNLEARNING = "open-unlearning d3d7cf9, configs/trainer and configs/experiment/unlearn/tofu"
OPEN_RUN: dict[str, Value] = {
    "train__unit": "epochs",
    "train__length": 10.0,
    # 8 x 4
    "train__batch_size": 8 * 4,
    "train__weight_decay": 0.01,
    # one epoch of ten
    "train__warmup_fraction": 1 / 10,
}
OPEN_MODEL: dict[str, Value] = {
    "model__name": "open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
    "model__teach": False,
}
TOFU_SHEETS = {
    f"simnpo_tofu_forget{size}": read(
        SIMNPO,
        simnpo__beta=beta,
        # the pair of the two terms
        method__forget_weight=coefficient,
        method__retain_weight=1.0,
        **SIMNPO_RUN,
    )
    | left_open(train__weight_decay=0.01, train__warmup_fraction=0.1, **TOFU_OPEN)
    for size, beta, coefficient in (("10", 4.5, 0.125), ("05", 2.5, 0.1375))
} | {
    "npo_tofu_open_unlearning": read(
        OPEN_UNLEARNING,
        method__forget="npo",
        npo__beta=0.1,
        method__retain="nll",
        method__retain_weight=1.0,
        train__learning_rate=1e-5,
        **OPEN_RUN,
    )
    | left_open(**OPEN_MODEL, **TOFU_OPEN),
    "undial_tofu": read(
        OPEN_UNLEARNING,
        method__forget="undial",
        undial__beta=10.0,
        # its retain term has weight 0
        method__retain="none",
        train__learning_rate=1e-4,
        **OPEN_RUN,
    )
    | left_open(**OPEN_MODEL, **TOFU_OPEN),
}

# --- LLMU (Yao et al. 2310.10683), and Doshi and Stickland 2411.12103 ----------------------------
BLACKBOX = "Doshi and Stickland 2411.12103, its code"
ZEPHYR, LLAMA = "HuggingFaceH4/zephyr-7b-beta", "meta-llama/Meta-Llama-3-8B-Instruct"
TWO_TERM: dict[str, Value] = {
    "model__teach": False,
    "method__forget": "llmu_two_term",
    "method__retain": "kl",
    "method__retain_weight": 1.0,
    "train__batch_size": 1,
    # the scheduler's rate, which overrides the optimizer's 2e-6; linear to 0 at step 5000
    "train__learning_rate": 2e-4,
    "train__schedule": "linear",
    "train__warmup_fraction": 0.0,
    "train__unit": "steps",
    "train__adapter": "lora",
    "train__parameters": r"(q_proj|v_proj)$",
    # AdaLoRA's target rank
    "lora__rank": 8,
    "lora__alpha": 16,
    "lora__dropout": 0.0,
}
LLMU_SHEETS = {
    "llmu_opt": read(
        "kevinyaobytedance/llm_unlearn 647f309, unlearn_harm.py",
        model__name="facebook/opt-1.3b",
        model__teach=False,
        method__forget="llmu",
        llmu__weight=0.5,
        llmu__mismatch_weight=1.0,
        mismatch__count=5,
        method__retain="kl",
        method__retain_weight=1.0,
        train__learning_rate=2e-6,
        train__batch_size=2,
        train__unit="steps",
        train__length=1000.0,
        train__schedule="linear",
        train__warmup_fraction=0.0,
        # AdamW's own default
        train__weight_decay=0.01,
        train__max_grad_norm=1e9,
        data__template="### Question: {prompt}\n ### Answer:",
    )
    | left_open(data__max_tokens=256),
} | {
    f"blackbox_llmu_{model}_{corpus}": read(
        BLACKBOX,
        model__name={"zephyr": ZEPHYR, "llama": LLAMA}[model],
        llmu_two_term__weight=weight,
        # the checkpoint that was taken
        train__length=float(steps),
        data__max_tokens=tokens,
        **TWO_TERM,
    )
    | left_open(train__weight_decay=0.0, train__max_grad_norm=1.0)
    for model, corpus, weight, steps, tokens in (
        ("zephyr", "biology", 0.07, 5000, 1024),
        ("llama", "biology", 0.09, 5000, 1024),
        ("zephyr", "wmdp", 0.0036, 1000, 512),
        ("llama", "wmdp", 0.0010, 1500, 512),
    )
}
BLACKBOX_RMU_SHEETS = {
    "blackbox_rmu_zephyr_biology": read(
        BLACKBOX,
        model__name=ZEPHYR,
        rmu__steering=10.0,
        # blocks 5 to 7 are trained although the loss looks at block 15
        method__layer=15,
        method__retain_weight=50.0,
        train__batch_size=1,
        train__length=200.0,
        train__learning_rate=8e-5,
        data__max_tokens=1024,
    ),
    "blackbox_rmu_llama_biology": read(
        BLACKBOX,
        model__name=LLAMA,
        rmu__steering=30.0,
        method__layer=7,
        method__retain_weight=50.0,
        train__batch_size=1,
        train__length=100.0,
        train__learning_rate=8e-5,
        data__max_tokens=1024,
    ),
    "blackbox_rmu_llama_wmdp": read(
        BLACKBOX,
        model__name=LLAMA,
        rmu__steering=30.0,
        method__layer=7,
        method__retain_weight=1200.0,
        train__batch_size=4,
        train__length=150.0,
    )
    | left_open(train__learning_rate=8e-5, data__max_tokens=512),
}
BLACKBOX_RMU_SHEETS = {
    name: sheet
    | read(
        BLACKBOX,
        model__teach=False,
        train__unit="steps",
        train__parameters=down_proj("5|6|7"),
        **RMU,
    )
    | left_open(**OPTIMIZER)
    for name, sheet in BLACKBOX_RMU_SHEETS.items()
}

# --- The coreset study, Pal et al. 2504.10185 ----------------------------------------------------
SETUP, APPENDIX_A = (f"Pal et al. 2504.10185, {part}" for part in ("setup", "appendix A"))
CORESET_SHEETS = {
    "coreset_rmu_wmdp": read(SETUP, model__name=ZEPHYR, model__teach=False)
    | read(APPENDIX_A, **RMU)
    # tables B1 and B2: 1, 10, 20, 100 epochs of 600, 60, 30, 6 documents
    | read(TABLE_B1, train__learning_rate=5e-5, train__unit="presentations", train__length=600.0)
    | left_open(
        rmu__steering=6.5,
        method__retain_weight=1200.0,
        method__layer=7,
        train__parameters=down_proj("5|6|7"),
        train__batch_size=4,
        data__max_tokens=512,
        **OPTIMIZER,
    ),
    "coreset_npo_wmdp": read(SETUP, model__name=ZEPHYR, model__teach=False)
    | read(APPENDIX_A, method__forget="npo", method__retain="nll")
    # 0.93 epochs of 600 = 140 steps of 4, at every ratio (9.33 epochs of 60, 18.67 of 30)
    | read(
        TABLE_B1,
        train__learning_rate=7e-6,
        train__unit="steps",
        train__length=140.0,
        train__batch_size=4,
    )
    | left_open(
        npo__beta=0.0225,
        method__retain_weight=1.0,
        data__max_tokens=512,
        train__schedule="linear",
        train__warmup_fraction=0.1,
        train__weight_decay=0.0,
        train__max_grad_norm=1.0,
    ),
}
SHEETS: dict[str, Sheet] = (
    RMU_SHEETS
    | SMOOTH_SHEETS
    | MUSE_SHEETS
    | TOFU_SHEETS
    | LLMU_SHEETS
    | BLACKBOX_RMU_SHEETS
    | CORESET_SHEETS
)


def test_every_recipe_has_a_sheet() -> None:
    assert SHEETS.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_has_the_values_of_its_sheet_and_calls_confirmed_what_a_source_states(
    name: str,
) -> None:
    sheet = SHEETS[name]
    assert values(name) == {setting: value for setting, (value, _) in sheet.items()}
    confirmed = {setting for setting, row in RECIPES[name].settings.items() if row.confirmed}
    assert confirmed == {setting for setting, (_, source) in sheet.items() if source != "open"}


# Hyperparameters whose default in a signature is a published value: it stands once, there.
DEFAULTS: dict[str, tuple[Value, str]] = {
    "npo.beta": (0.1, "open-unlearning configs/trainer/NPO.yaml"),
    "simnpo.beta": (4.5, "Unlearn-Simple, TOFU forget10"),
    "simnpo.delta": (0.0, "open-unlearning configs/trainer/SimNPO.yaml"),
    "wga.beta": (1.0, "open-unlearning configs/trainer/WGA.yaml"),
    "satimp.beta1": (5.0, "open-unlearning configs/trainer/SatImp.yaml"),
    "satimp.beta2": (1.0, "open-unlearning configs/trainer/SatImp.yaml"),
    "rmu.steering": (6.5, "cais/wmdp, Zephyr"),
    "adaptive_rmu.scale": (5.0, "Dang et al. 2408.06223, its code"),
    "undial.beta": (10.0, "open-unlearning configs/trainer/UNDIAL.yaml"),
    "ce_u.skipped": (1, "open-unlearning src/trainer/unlearn/ceu.py"),
    "dpo.beta": (0.1, "open-unlearning configs/trainer/DPO.yaml"),
    "altpo.beta": (0.1, "open-unlearning community/methods/AltPO, of its grid .05, .1, .5"),
    "llmu.weight": (0.5, "llm_unlearn unlearn_harm.py"),
    "llmu.mismatch_weight": (1.0, "llm_unlearn unlearn_harm.py"),
    "dual.rate": (1.0, "open-unlearning configs/trainer/PDU.yaml"),
    "negate.scale": (1.0, "MUSE 2407.06460, of 1 to 16"),
    "sam.radius": (0.01, "Fan et al. 2502.05374"),
    "average.start": (100 / 125, "Fan et al. 2502.05374: from step 100 of 125"),
    "average.every": (5, "Fan et al. 2502.05374"),
    "moderate.clusters": (4, "Pal et al. 2504.10185, appendix C"),
    "min_k.fraction": (0.4, "Pal et al. 2504.10185, appendix C2"),
    "grand.epochs": (10, "Pal et al. 2504.10185, appendix C1"),
    "min_k_score.share": (0.4, "MUSE 2407.06460"),
    "min_k_plus_score.share": (0.4, "open-unlearning configs/eval, k 0.4"),
}


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_a_published_default_stands_in_the_signature(name: str) -> None:
    assert option_names()[name].default == DEFAULTS[name][0], DEFAULTS[name][1]


# --- Presets: what every cell of an experiment has ------------------------------------------------
def of_cells(experiment: Experiment) -> list[dict[str, Value]]:
    """Every cell of the experiment's grids, checked and flat."""
    groups = grid_groups(experiment, check=check_trial)
    return [flatten(cell) for group in groups for cell in group.cells]


# Where -> setting -> the values that occur there and no other. `where` is what a cell has.
Held = tuple[dict[str, Value], str, set[Value], str]
FIVE: set[Value] = {0, 1, 2, 3, 4}
WMDP: dict[str, Value] = {"data.name": "wmdp-bio"}
NO_STOP = "the paper's runs go to their end"
CORESET_RMU: dict[str, Value] = {"method.forget": "rmu"}
CORESET_NPO: dict[str, Value] = {"method.forget": "npo"}
FIRST_600: Held = (
    {},
    "data.options",
    {"corpora=true,documents=600"},
    "Pal et al. 2504.10185, section 1 and appendix B: the first 600 articles",
)
RMU_RUNS: tuple[Held, ...] = (
    FIRST_600,
    ({}, "data.name", {"wmdp-bio"}, SETUP),
    ({}, "model.name", {ZEPHYR}, SETUP),
    ({}, "stop.utility_floor", {0.0}, NO_STOP),
    (CORESET_RMU, "train.learning_rate", {5e-5}, TABLE_B1),
    (CORESET_RMU, "method.retain", {"activation"}, APPENDIX_A),
)
CORESET_RUNS: tuple[Held, ...] = (
    *RMU_RUNS,
    (CORESET_NPO, "train.learning_rate", {7e-6}, TABLE_B1),
    (CORESET_NPO, "method.retain", {"nll"}, APPENDIX_A),
)
EQUAL_PRESENTATIONS: tuple[Held, ...] = (
    (CORESET_RMU, "train.unit", {"presentations"}, "table B2: epochs x documents = 600"),
    (CORESET_RMU, "train.length", {600.0}, "table B2"),
    (CORESET_NPO, "train.unit", {"steps"}, "table B2: 140 steps at every ratio"),
    (CORESET_NPO, "train.length", {140.0}, "table B2"),
)
RATIOS: set[Value] = {0.01, 0.05, 0.1, 1.0}
TOFU_05: dict[str, Value] = {"data.name": "tofu"}
PHI, LLAMA2 = "microsoft/phi-1_5", "meta-llama/Llama-2-7b-chat-hf"
CONTROL = "tmlr-group/Unlearning-with-Control 56e075b, config/forget.yaml"
PAPER: dict[str, tuple[Held, ...]] = {
    "coreset_effect": (
        *CORESET_RUNS,
        *EQUAL_PRESENTATIONS,
        ({"select.name": "random"}, "select.ratio", RATIOS, "figure 2 and table 1"),
        ({"select.name": "random"}, "select.seed", FIVE, "5 trials of RANDOM"),
        ({}, "select.name", {"random", "grand", "moderate", "min_k"}, "table 1"),
        ({"select.name": "grand"}, "select.ratio", {0.05, 0.1}, "table 1"),
        ({"select.name": "grand"}, "select.seed", {0, 1}, "2 trials of the others"),
        ({"select.name": "moderate"}, "select.seed", {0, 1}, "2 trials of the others"),
        ({"select.name": "min_k"}, "select.seed", {0, 1}, "2 trials of the others"),
        ({"select.name": "grand"}, "grand.epochs", {10}, "appendix C1"),
        ({"select.name": "moderate"}, "moderate.clusters", {4}, "appendix C"),
        ({"select.name": "min_k"}, "min_k.fraction", {0.4}, "appendix C2, K = 40"),
    ),
    "selectors": (
        *CORESET_RUNS,
        *EQUAL_PRESENTATIONS,
        ({"select.name": "min_k"}, "select.ratio", {0.05, 0.1}, "table 1"),
        ({"select.name": "random"}, "select.ratio", {0.05, 0.1, 1.0}, "table 1"),
    ),
    "steps_or_data": (
        *CORESET_RUNS,
        ({}, "select.ratio", RATIOS, "figure 1"),
        # the paper's own is 600; the others are ours
        ({}, "train.length", {150.0, 300.0, 600.0, 1800.0, 5400.0}, "ours around table B2"),
        ({}, "train.unit", {"presentations"}, "table B2"),
    ),
    "keywords": (
        *RMU_RUNS,
        ({}, "method.forget", {"rmu"}, "section 4: RMU alone"),
        ({}, "select.ratio", RATIOS, "figure 3"),
        ({"select.text": "original"}, "train.length", {600.0}, "table B2"),
        ({"select.text": "keywords_only"}, "train.unit", {"epochs"}, "section 4"),
        ({"select.text": "keywords_only"}, "train.length", {300.0}, "section 4: at every ratio"),
        # OpenAI's o1 there
        ({}, "select.extractor", {"judge"}, "section 4"),
    ),
    "keyword_effect": (
        *RMU_RUNS,
        ({}, "method.forget", {"rmu"}, "section 4: RMU alone"),
        ({}, "select.ratio", {0.05}, "one of figure 3"),
        ({}, "train.length", {300.0}, "section 4, for keywords; here for whole documents too"),
        ({}, "train.unit", {"epochs"}, "section 4"),
    ),
    "faithfulness": (
        *CORESET_RUNS,
        *EQUAL_PRESENTATIONS,
        ({}, "select.ratio", RATIOS, "figure 4"),
        # 0, 0.1, ..., 1 hold the paper's six points 0, 0.2, ..., 1
        ({}, "explain.path_points", {11}, "section 5: six points"),
    ),
    "defences": (
        ({}, "data.name", {"wmdp-bio"}, SMOOTH),
        ({}, "model.name", {ZEPHYR}, SMOOTH),
        ({}, "stop.utility_floor", {0.0}, NO_STOP),
        ({"method.wrappers": ""}, "npo.beta", {0.0225}, SMOOTH),
        ({"method.wrappers": "sam"}, "npo.beta", {0.015}, SMOOTH),
        ({"method.wrappers": "average"}, "npo.beta", {0.05}, SMOOTH),
        ({"method.wrappers": ""}, "train.learning_rate", {5e-6}, SMOOTH),
        ({"method.wrappers": "sam"}, "train.learning_rate", {5e-6}, SMOOTH),
        ({"method.wrappers": "average"}, "train.learning_rate", {5.5e-6}, SMOOTH),
        ({"method.wrappers": ""}, "method.retain_weight", {1.0}, SMOOTH),
        ({"method.wrappers": "sam"}, "method.retain_weight", {2.25}, SMOOTH),
        ({"method.wrappers": "average"}, "method.retain_weight", {2.0}, SMOOTH),
        ({}, "train.length", {125.0}, SMOOTH),
    ),
    "truly_unlearned": (
        ({}, "data.name", {"biology"}, BLACKBOX),
        # chunks of 1,024 tokens
        ({}, "data.options", {"words=750"}, BLACKBOX),
        ({}, "data.max_tokens", {1024}, BLACKBOX),
        ({}, "model.name", {ZEPHYR, LLAMA}, BLACKBOX),
        ({}, "stop.utility_floor", {0.0}, NO_STOP),
        ({"method.forget": "rmu", "model.name": ZEPHYR}, "train.length", {200.0}, BLACKBOX),
        ({"method.forget": "rmu", "model.name": LLAMA}, "train.length", {100.0}, BLACKBOX),
        ({"method.forget": "rmu", "model.name": ZEPHYR}, "method.layer", {15}, BLACKBOX),
        ({"method.forget": "llmu_two_term"}, "train.length", {5000.0}, BLACKBOX),
        ({"method.forget": "llmu_two_term"}, "train.learning_rate", {2e-4}, BLACKBOX),
        ({"method.forget": "rmu"}, "train.learning_rate", {8e-5}, BLACKBOX),
    ),
    "dilemma": (
        ({}, "data.name", {"muse-news", "muse-books", "wmdp-bio"}, "unPact 2509.24675: reviews"),
        ({}, "stop.utility_floor", {0.0}, NO_STOP),
        (
            {"data.name": "muse-news", "method.forget": "rmu"},
            "train.learning_rate",
            {1e-3},
            TABLE_B1,
        ),
        (
            {"data.name": "muse-books", "method.forget": "rmu"},
            "train.learning_rate",
            {1e-3},
            TABLE_B1,
        ),
        ({"data.name": "muse-news", "method.forget": "rmu"}, "train.length", {10.0}, TABLE_B1),
        ({"data.name": "muse-books", "method.forget": "rmu"}, "train.length", {1.0}, TABLE_B1),
        ({"data.name": "muse-news", "method.forget": "npo"}, "train.length", {10.0}, TABLE_B1),
        ({"data.name": "muse-books", "method.forget": "npo"}, "train.length", {1.0}, TABLE_B1),
        ({"data.name": "muse-news", "method.forget": "npo"}, "npo.beta", {0.1}, "Unlearn-Smooth"),
        # what a task vector reinforces: 10 epochs at 1e-5; scales from 1
        (
            {"data.name": "muse-news", "method.forget": "task_vector"},
            "train.length",
            {10.0},
            "MUSE 2407.06460",
        ),
        (
            {"data.name": "muse-books", "method.forget": "task_vector"},
            "train.length",
            {10.0},
            "MUSE 2407.06460",
        ),
        (
            {"data.name": "muse-books", "method.forget": "task_vector"},
            "train.learning_rate",
            {1e-5},
            "MUSE 2407.06460",
        ),
        # 1,500 words are about 2,048 tokens
        ({"data.name": "muse-books"}, "data.options", {"words=1500"}, "Unlearn-Smooth"),
        ({"data.name": "muse-books"}, "data.max_tokens", {2048}, "Unlearn-Smooth"),
        ({"data.name": "muse-news"}, "data.max_tokens", {2048}, "Unlearn-Smooth"),
    ),
    "redundancy": (
        ({}, "data.name", {"tofu", "muse-books"}, "ours: facts told once, and often"),
        ({"data.name": "tofu"}, "train.learning_rate", {1e-5}, OPEN_UNLEARNING),
        ({"data.name": "tofu"}, "npo.beta", {0.1}, OPEN_UNLEARNING),
        ({"data.name": "tofu"}, "train.length", {10.0}, OPEN_UNLEARNING),
        ({"data.name": "muse-books"}, "train.length", {1.0}, TABLE_B1),
        ({"data.name": "muse-books"}, "train.learning_rate", {1e-5}, TABLE_B1),
        ({"data.name": "muse-books"}, "data.options", {"words=1500"}, "Unlearn-Smooth"),
        ({}, "stop.utility_floor", {0.0}, NO_STOP),
    ),
    "control": (
        (TOFU_05, "data.options", {"size=05"}, "2406.09179, tables of forget05"),
        ({}, "model.name", {PHI, LLAMA2}, CONTROL),
        ({"model.name": PHI}, "train.learning_rate", {2e-5}, CONTROL),
        ({"model.name": LLAMA2}, "train.learning_rate", {1e-5}, CONTROL),
        # the base models: full TOFU for 5 epochs at the same rates
        ({"model.name": PHI}, "model.teach_learning_rate", {2e-5}, CONTROL),
        ({"model.name": LLAMA2}, "model.teach_learning_rate", {1e-5}, CONTROL),
        ({}, "model.teach_epochs", {5}, CONTROL),
        ({}, "train.unit", {"epochs"}, CONTROL),
        ({}, "train.length", {5.0}, CONTROL),
        # 4 x 4
        ({}, "train.batch_size", {16}, CONTROL),
        ({}, "train.accumulation", {4}, CONTROL),
        ({}, "train.schedule", {"linear"}, CONTROL),
        # one epoch of five
        ({}, "train.warmup_fraction", {1 / 5}, CONTROL),
        ({}, "train.weight_decay", {0.0}, CONTROL),
        ({}, "train.max_grad_norm", {1.0}, CONTROL),
        ({"method.forget": "npo"}, "npo.beta", {0.5}, f"{CONTROL}, dataloader.py"),
        ({"method.retain": "nll"}, "method.retain_weight", {1.0}, f"{CONTROL}: lambda"),
        ({"method.retain": "kl"}, "method.retain_weight", {1.0}, f"{CONTROL}: lambda"),
        # hidden_states[21]: the embeddings are entry 0, so the block is 20 counted from 0
        ({"method.forget": "rmu"}, "method.layer", {21 - 1}, f"{CONTROL}, dataloader.py"),
        # the target is 2 u with u ~ U[0, 1)^d as drawn, of length 2 sqrt(d / 3): d 2048 and 4096
        (
            {"method.forget": "rmu", "model.name": PHI},
            "rmu.steering",
            {2 * math.sqrt(2048 / 3)},
            f"{CONTROL}, dataloader.py: rmu_noise",
        ),
        (
            {"method.forget": "rmu", "model.name": LLAMA2},
            "rmu.steering",
            {2 * math.sqrt(4096 / 3)},
            f"{CONTROL}, dataloader.py: rmu_noise",
        ),
        ({}, "train.seed", FIVE, "OpenReview wUtCieKuQU: tables of 5 seeds"),
        ({}, "calibrate.beside", {0.9}, f"{CONTROL}: ps_p"),
        # not confirmed for the paper's tables; a reviewer reads 0.95 to 0.90
        ({}, "calibrate.tau", {0.95}, "OpenReview wUtCieKuQU, a review"),
        ({}, "calibrate.retention", {"extraction_strength"}, "2406.09179, A3"),
    ),
}
SATIMP = "open-unlearning configs/trainer/SatImp.yaml: gamma 0.1, alpha 1"
# Published weights in experiments on the beds.
ON_THE_BEDS: tuple[Held, ...] = (
    ({"method.forget": "simnpo"}, "method.forget_weight", {0.125}, SIMNPO),
    ({"method.forget": "simnpo"}, "method.retain_weight", {1.0}, SIMNPO),
    ({"method.forget": "satimp"}, "method.forget_weight", {0.1}, SATIMP),
    ({"method.forget": "satimp"}, "method.retain_weight", {1.0}, SATIMP),
    # of every other method the forget term is taken as it is
    ({"method.forget": "pdu"}, "method.forget_weight", {1.0}, "unweighted"),
    (
        {"method.forget": "pdu"},
        "method.retain_weight",
        {50.0},
        "open-unlearning community/methods/PDU: 50 to 100",
    ),
)
LAPTOPS: dict[str, tuple[Held, ...]] = {
    "control": ON_THE_BEDS,
    "methods": (
        *ON_THE_BEDS,
        ({"method.forget": "task_vector"}, "negate.scale", {1.0, 16.0}, "MUSE: 1 to 16"),
    ),
}
FILES = sorted(path.stem for path in EXPERIMENTS.glob("*.py"))
# they have no preset beside the bed's: nothing of a paper's size is claimed
BED_ALONE = {
    "hello",
    "lasting",
    "linked_questions",
    "methods",
    "metric_faithfulness",
    "metric_robustness",
    "optimizers",
    "pretrained_books",
    "pretrained_control",
    "pretrained_coreset",
    "pretrained_demo",
    "pretrained_dilemma",
    "pretrained_mmlu",
    "pretrained_tofu",
    "pretrained_unlearned",
    "retain_coreset",
    "tofu_coreset",
}


def held_in(cells: list[dict[str, Value]], held: Held) -> Iterator[str]:
    """What is wrong with a row of the table, in words."""
    where, setting, expected, source = held
    chosen = [cell for cell in cells if where.items() <= cell.items()]
    found = {cell[setting] for cell in chosen if setting in cell}
    if not chosen or found != expected:
        yield f"{where}: {setting} must be {expected} ({source}), found {found}"


@pytest.mark.parametrize("name", sorted(PAPER))
def test_a_paper_preset_has_the_values_of_its_sheet(name: str) -> None:
    cells = of_cells(load(EXPERIMENTS / f"{name}.py", preset="paper"))
    assert not [wrong for held in PAPER[name] for wrong in held_in(cells, held)]


@pytest.mark.parametrize("name", sorted(LAPTOPS))
def test_published_weights_stand_in_the_experiments_on_the_beds(name: str) -> None:
    cells = of_cells(load(EXPERIMENTS / f"{name}.py", preset=LAPTOP))
    assert not [wrong for held in LAPTOPS[name] for wrong in held_in(cells, held)]


def test_every_experiment_with_a_paper_preset_has_a_sheet() -> None:
    for name in FILES:
        text = (EXPERIMENTS / f"{name}.py").read_text(encoding="utf-8")
        assert ('"paper": {' in text) == (name in PAPER) == (name not in BED_ALONE), name


# Experiments on questions with options, and what they are scored by: as WMDP and MMLU are.
BY_LETTERS = sorted(
    (
        "coreset_effect",
        "selectors",
        "steps_or_data",
        "keywords",
        "keyword_effect",
        "faithfulness",
        "defences",
        "truly_unlearned",
    )
)
# unPact asks its WMDP questions for short answers, which a judge reads
BY_ANSWERS = {"dilemma"}


@pytest.mark.parametrize("name", sorted(PAPER))
def test_wmdp_and_mmlu_questions_are_scored_by_their_letters(name: str) -> None:
    """lm-evaluation-harness on WMDP: the options stand in the prompt, the highest of the letters
    counts; utility is MMLU by the same rule.
    """
    experiment = load(EXPERIMENTS / f"{name}.py", preset="paper")
    corpora = {cell["data.name"] for cell in of_cells(experiment)}
    by_letters = bool(corpora & {"wmdp-bio", "wmdp-cyber", "biology"}) and name not in BY_ANSWERS
    assert by_letters == (name in BY_LETTERS)
    goal = experiment.objective
    assert (goal.forgetting == goal.utility == "letter_choice") == by_letters
    if by_letters:
        written = {"letter_written", "letter_written_answered", "letter_answered"}
        asked = set(experiment.base.measure.metrics.split(","))
        assert {"letter_choice", *written} <= asked


def test_a_steering_of_two_over_an_unnormalised_direction_is_a_length_of_52_and_74() -> None:
    """Draws of 2 u, u ~ U[0, 1)^d: 2 sqrt(d / 3) to within two per cent; ours is exactly that."""
    import torch

    for width, length in ((2048, 52.3), (4096, 73.9)):
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            drawn = float((2 * torch.rand(width, generator=generator)).norm())
            ours = float((2 * math.sqrt(width / 3) * control_direction(width, seed)).norm())
            assert drawn == pytest.approx(length, rel=0.02)
            assert ours == pytest.approx(length, rel=0.001)


def test_a_sheet_s_values_are_those_of_a_trial_that_takes_the_recipe() -> None:
    """A recipe whose value another of its values overrides would not be the published run."""
    for name, sheet in SHEETS.items():
        flat: Mapping[str, Value] = flatten(check_trial(with_values(Trial(), values(name))))
        assert {setting: flat[setting] for setting in sheet} == {
            setting: value for setting, (value, _) in sheet.items()
        }, name
