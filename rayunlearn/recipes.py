"""Published runs as data: model, corpus and every hyperparameter, each with where it was read and
whether that is sure.

`rayunlearn list recipes` prints them; `--recipe NAME` puts their settings over an experiment's. A
value is confirmed when it was read in the code or the paper that ran it. What a paper leaves open
is not guessed silently: such a setting is ours and says so. A released run that the program cannot
express exactly says in `departures` where it differs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from rayunlearn.config import Trial, Value, flatten
from rayunlearn.errors import unknown_name

CAIS = "code of WMDP (c0b6c12)"
SMOOTH = "code of Unlearn-Smooth"
SIMNPO = "code of Unlearn-Simple (f1a355d)"
OPEN = "open-unlearning d3d7cf9"
KNOCK = "code of Doshi and Stickland (2411.12103)"
LLMU = "code of llm_unlearn (647f309)"
CORESET_STUDY = "Pal et al. 2504.10185, tables B1 and B2"
CORESET_LOSSES = "Pal et al. 2504.10185, appendix A"
CORESET_MODELS = "Pal et al. 2504.10185, experiment setup"
OUR_CHOICE = "ours: not read in the source"
TRAINER = "the Trainer's own default, which the code's configuration leaves alone"
# the source does not clip gradients
UNCLIPPED = 1e9
# As WMDP and MMLU are scored: the options are shown and the highest of their letters counts. Which
# letter is written, and whether any is, stand beside.
LETTER_SETTINGS = "cheap,letter_choice,letter_written,letter_written_answered,letter_answered"


@dataclass(frozen=True)
class Setting:
    """One value of a recipe. `confirmed`: read where it was run; otherwise inferred, second-hand or
    ours.
    """

    value: Value
    source: str
    confirmed: bool = True


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published run. `model` and `corpus` in words, `settings` by dotted name, `departures` of
    ours from it.
    """

    title: str
    model: str
    corpus: str
    settings: Mapping[str, Setting]
    departures: str = ""


def values(name: str) -> dict[str, Value]:
    """The settings of a recipe as dotted name -> value. Raises UserError for a name that is not
    there.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return {setting: row.value for setting, row in RECIPES[name].settings.items()}


def axis(
    name: str, changes: Mapping[str, Value] | None = None, *, without: tuple[str, ...] = ()
) -> dict[tuple[str, ...], tuple[tuple[Value, ...], ...]]:
    """A recipe as an axis with one point, `changes` over it: the arms of an experiment may be
    published runs.

    `without`: settings of the recipe, or beginnings of their names (`npo.`), that the experiment
    sets itself or has no use for.
    """
    point = {
        setting: value for setting, value in values(name).items() if not setting.startswith(without)
    } | dict(changes or {})
    return {tuple(point): (tuple(point.values()),)}


def _read(source: str, settings: Mapping[str, Value]) -> dict[str, Setting]:
    """Settings that were read in one source."""
    return {name: Setting(value, source) for name, value in settings.items()}


def _open(source: str, settings: Mapping[str, Value]) -> dict[str, Setting]:
    """Settings that are not confirmed."""
    return {name: Setting(value, source, confirmed=False) for name, value in settings.items()}


def _model(name: str, source: str, *, confirmed: bool = True) -> dict[str, Setting]:
    """A Hub model that is taken as it is."""
    return {
        "model.name": Setting(name, source, confirmed),
        "model.teach": Setting(False, source, confirmed),
    }


_RMU: dict[str, Value] = {"method.forget": "rmu", "method.retain": "activation"}
_RMU_OPTIMIZER: dict[str, Value] = {
    "train.weight_decay": 0.0,
    "train.schedule": "constant",
    "train.warmup_fraction": 0.0,
    "train.max_grad_norm": UNCLIPPED,
}
# The block that the loss looks at counts from 0 in that code and here, and steering is the length
# of the target in both: both normalise the direction.
_RMU_DEPARTURES = (
    "float32 weights and AdamW state (released: bfloat16, eps 1e-6), documents drawn in seeded"
    " epochs, label tokens alone in the means (released: padding too), one corpus a run (released:"
    " bio and cyber in turn, cyber cut at 768 tokens)"
)
_NPO: dict[str, Value] = {"method.forget": "npo", "method.retain_weight": 1.0}
_RETAIN = Setting(
    "nll", "the usual retain loss of these runs; the source's own was not read", confirmed=False
)
_TOFU: dict[str, Value] = {
    "train.unit": "epochs",
    "train.length": 10.0,
    "train.batch_size": 32,
    "train.weight_decay": 0.01,
}
_LINEAR: dict[str, Value] = {"train.schedule": "linear"}
_TOFU_DEPARTURES = (
    "one retain document per forget document, drawn in its own seeded epochs; warm-up as a fraction"
    " of the steps"
)
_BLACKBOX: dict[str, Value] = {
    "method.forget": "llmu_two_term",
    "method.retain": "kl",
    "method.retain_weight": 1.0,
    "train.batch_size": 1,
    "train.learning_rate": 2e-4,
    "train.schedule": "linear",
    "train.warmup_fraction": 0.0,
    "train.adapter": "lora",
    "train.parameters": r"(q_proj|v_proj)$",
    "lora.rank": 8,
    "lora.alpha": 16,
    "lora.dropout": 0.0,
}
_BLACKBOX_DEPARTURES = (
    "LoRA of the rank AdaLoRA aims at (released: AdaLoRA 12 to 8, never re-allocated), KL at label"
    " positions alone, padding is no label (released: it is), chunks do not overlap, bio and cyber"
    " documents cut alike (released: cyber at 768 tokens), and the linear decay ends with the run"
    " (released: at step 5000, whichever checkpoint is taken)"
)
ZEPHYR, LLAMA3 = "HuggingFaceH4/zephyr-7b-beta", "meta-llama/Meta-Llama-3-8B-Instruct"
WMDP_BIO = "cais/wmdp-bio-forget-corpus (and -cyber-), retain wikitext-2-raw test"
BIOLOGY = (
    "Wikipedia biology; retain history, concepts in physics, philosophy (article counts not"
    " confirmed)"
)


def _rmu(
    layers: str,
    *,
    steering: float,
    weight: float,
    layer: int,
    batch: int,
    steps: int,
    source: str = CAIS,
) -> dict[str, Setting]:
    """RMU on the down projections of three blocks; the learning rate is set apart. What is known of
    the optimizer is known of WMDP's own code.
    """
    chosen = {
        "rmu.steering": steering,
        "method.retain_weight": weight,
        "method.layer": layer,
        "train.batch_size": batch,
        "train.length": float(steps),
    }
    named: dict[str, Value] = {
        "train.parameters": rf"layers\.({layers})\.mlp\.down_proj\.weight$",
        "train.unit": "steps",
    }
    optimizer = (
        _read(CAIS, _RMU_OPTIMIZER)
        if source == CAIS
        else _open(f"as in the {CAIS} that it was taken from", _RMU_OPTIMIZER)
    )
    return _read(source, _RMU | chosen | named) | optimizer


def _blackbox(weight: float, steps: int, max_tokens: int) -> dict[str, Setting]:
    chosen: dict[str, Value] = {
        "llmu_two_term.weight": weight,
        "train.length": float(steps),
        "train.unit": "steps",
        "data.max_tokens": max_tokens,
    }
    return _read(KNOCK, _BLACKBOX | chosen)


def _smooth(beta: float, gamma: float, learning_rate: float) -> dict[str, Setting]:
    """NPO on WMDP-bio as in Unlearn-Smooth: 125 steps of 1 x 4 documents."""
    chosen: dict[str, Value] = {
        "npo.beta": beta,
        "method.retain_weight": gamma,
        "train.learning_rate": learning_rate,
        "train.batch_size": 4,
        "train.accumulation": 4,
    }
    return (
        _model(ZEPHYR, SMOOTH)
        | {"method.retain": _RETAIN}
        | _read(SMOOTH, _NPO | chosen | {"train.length": 125.0, "train.unit": "steps"})
        | _open("RMU's on the same corpus", {"data.max_tokens": 512})
    )


_SMOOTH_DEPARTURES = (
    "NPO's ratio is summed over the answer (released: mean per token, so beta is not on the same"
    " scale)"
)


def _muse(model: str, *, epochs: float) -> dict[str, Setting]:
    """NPO on a MUSE corpus."""
    chosen: dict[str, Value] = {
        "npo.beta": 0.1,
        "train.learning_rate": 1e-5,
        "train.batch_size": 4,
        "data.max_tokens": 2048,
    }
    return (
        _model(model, OUR_CHOICE, confirmed=False)
        | {"method.retain": _RETAIN}
        | _read(SMOOTH, _NPO | chosen)
        | _read(CORESET_STUDY, {"train.unit": "epochs", "train.length": epochs})
        | _open(
            "open-unlearning's MUSE runs; its own was not read",
            {"train.schedule": "constant", "train.warmup_fraction": 0.0},
        )
    )


_MUSE_DEPARTURES = (
    "log-probabilities, summed (MUSE's code: raw logits, entry by entry); documents as they are"
    " (released: texts joined and cut into chunks of 2,048 tokens, so an epoch has other steps)"
)

# What decides a run beside its losses, rate, length and batch. A recipe that leaves one open has a
# trial's default there, under our name.
UNSAID = (
    "train.schedule",
    "train.warmup_fraction",
    "train.weight_decay",
    "train.max_grad_norm",
    "data.max_tokens",
)


def _with_unsaid(recipe: Recipe) -> Recipe:
    """The recipe with a value for everything in UNSAID."""
    defaults = flatten(Trial())
    ours = _open(
        OUR_CHOICE, {name: defaults[name] for name in UNSAID if name not in recipe.settings}
    )
    return replace(recipe, settings={**recipe.settings, **ours})


_PUBLISHED: Mapping[str, Recipe] = MappingProxyType(
    {
        "rmu_zephyr_wmdp": Recipe(
            title="RMU on Zephyr-7B, the released model",
            model=ZEPHYR,
            corpus=WMDP_BIO,
            settings=_model(ZEPHYR, CAIS)
            | _rmu("5|6|7", steering=6.5, weight=1200.0, layer=7, batch=4, steps=150)
            | _read(CAIS, {"train.learning_rate": 5e-5, "data.max_tokens": 512}),
            departures=_RMU_DEPARTURES,
        ),
        "rmu_yi_wmdp": Recipe(
            title="RMU on Yi-34B-Chat",
            model="01-ai/Yi-34B-Chat",
            corpus=WMDP_BIO,
            settings=_model("01-ai/Yi-34B-Chat", CAIS)
            | _rmu("13|14|15", steering=300.0, weight=350.0, layer=15, batch=2, steps=400)
            | _open(
                "the default of the same code",
                {"train.learning_rate": 5e-5, "data.max_tokens": 512},
            ),
            departures=_RMU_DEPARTURES,
        ),
        "rmu_mixtral_wmdp": Recipe(
            title="RMU on Mixtral-8x7B",
            model="Mixtral-8x7B (which of its two releases is not confirmed)",
            corpus=f"{WMDP_BIO}, lines of more than 200 characters",
            settings=_model("mistralai/Mixtral-8x7B-Instruct-v0.1", OUR_CHOICE, confirmed=False)
            | _rmu("5|6|7", steering=300.0, weight=1600.0, layer=7, batch=2, steps=400)
            | _open(
                "parameter 7 of a block: w3 of expert 0 in 2024; experts are one tensor now",
                {"train.parameters": r"layers\.(5|6|7)\..*experts"},
            )
            | _open(
                "the default of the same code",
                {"train.learning_rate": 5e-5, "data.max_tokens": 512},
            ),
            departures=(
                f"{_RMU_DEPARTURES}; all experts are trained (released: the third matrix of the"
                " first)"
            ),
        ),
        "npo_zephyr_wmdp": Recipe(
            title="NPO on WMDP-bio",
            model=ZEPHYR,
            corpus="cais/wmdp-bio-forget-corpus, retain wikitext",
            settings=_smooth(0.0225, 1.0, 5e-6),
            departures=_SMOOTH_DEPARTURES,
        ),
        "npo_sam_zephyr_wmdp": Recipe(
            title="NPO with a sharpness-aware forget step on WMDP-bio",
            model=ZEPHYR,
            corpus="cais/wmdp-bio-forget-corpus, retain wikitext",
            settings=_smooth(0.015, 2.25, 5e-6)
            | _read(SMOOTH, {"method.wrappers": "sam", "sam.radius": 0.01}),
            departures=_SMOOTH_DEPARTURES,
        ),
        "npo_average_zephyr_wmdp": Recipe(
            title="NPO with weight averaging on WMDP-bio",
            model=ZEPHYR,
            corpus="cais/wmdp-bio-forget-corpus, retain wikitext",
            settings=_smooth(0.05, 2.0, 5.5e-6)
            | _read(
                SMOOTH, {"method.wrappers": "average", "average.start": 0.8, "average.every": 5}
            ),
            departures=_SMOOTH_DEPARTURES,
        ),
        "npo_muse_news": Recipe(
            title="NPO on MUSE News",
            model="muse-bench/MUSE-news_target",
            corpus="MUSE News forget (889 articles), retain1",
            settings=_muse("muse-bench/MUSE-news_target", epochs=10.0),
            departures=f"{_MUSE_DEPARTURES}, an article a document",
        ),
        "npo_muse_books": Recipe(
            title="NPO on MUSE Books",
            model="muse-bench/MUSE-books_target",
            corpus="MUSE Books forget, retain1",
            settings=_muse("muse-bench/MUSE-books_target", epochs=1.0),
            departures=f"{_MUSE_DEPARTURES}, pieces of so many words (`words`) documents",
        ),
        "simnpo_tofu_forget10": Recipe(
            title="SimNPO on TOFU forget10",
            model="Llama-2-7b-chat taught all of TOFU by its authors",
            corpus="TOFU forget10, retain90",
            settings=_read(
                SIMNPO,
                {
                    "method.forget": "simnpo",
                    "simnpo.beta": 4.5,
                    "simnpo.delta": 0.0,
                    "method.retain": "nll",
                },
            )
            | _read(SIMNPO, {"method.forget_weight": 0.125, "method.retain_weight": 1.0})
            | _read(
                SIMNPO,
                {
                    "train.learning_rate": 1e-5,
                    "train.unit": "epochs",
                    "train.length": 10.0,
                    "train.batch_size": 32,
                },
            )
            | _open(f"{OPEN} on TOFU", {"train.weight_decay": 0.01, "train.warmup_fraction": 0.1})
            | _open(TRAINER, _LINEAR),
            departures=_TOFU_DEPARTURES,
        ),
        "simnpo_tofu_forget05": Recipe(
            title="SimNPO on TOFU forget05",
            model="Llama-2-7b-chat taught all of TOFU by its authors",
            corpus="TOFU forget05, retain95",
            settings=_read(
                SIMNPO,
                {
                    "method.forget": "simnpo",
                    "simnpo.beta": 2.5,
                    "simnpo.delta": 0.0,
                    "method.retain": "nll",
                },
            )
            | _read(SIMNPO, {"method.forget_weight": 0.1375, "method.retain_weight": 1.0})
            | _read(
                SIMNPO,
                {
                    "train.learning_rate": 1e-5,
                    "train.unit": "epochs",
                    "train.length": 10.0,
                    "train.batch_size": 32,
                },
            )
            | _open(f"{OPEN} on TOFU", {"train.weight_decay": 0.01, "train.warmup_fraction": 0.1})
            | _open(TRAINER, _LINEAR),
            departures=_TOFU_DEPARTURES,
        ),
        "npo_tofu_open_unlearning": Recipe(
            title="NPO on TOFU as open-unlearning configures it (untuned)",
            model="open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
            corpus="TOFU forget10, retain90",
            settings=_model(
                "open-unlearning/tofu_Llama-3.2-1B-Instruct_full", OUR_CHOICE, confirmed=False
            )
            | _read(OPEN, {"method.retain": "nll"})
            | _read(
                OPEN,
                _NPO
                | {"npo.beta": 0.1, "train.learning_rate": 1e-5, "train.warmup_fraction": 0.1}
                | _TOFU,
            )
            | _open(TRAINER, _LINEAR),
            departures=_TOFU_DEPARTURES,
        ),
        "undial_tofu": Recipe(
            title="UNDIAL as open-unlearning configures it",
            model="open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
            corpus="TOFU forget10",
            settings=_model(
                "open-unlearning/tofu_Llama-3.2-1B-Instruct_full", OUR_CHOICE, confirmed=False
            )
            | _read(
                f"{OPEN}: retain x 0",
                {
                    "method.forget": "undial",
                    "undial.beta": 10.0,
                    "method.retain": "none",
                    "train.learning_rate": 1e-4,
                },
            )
            | _read(OPEN, {"train.warmup_fraction": 0.1} | _TOFU)
            | _open(TRAINER, _LINEAR),
            departures="label positions alone (released: prompts and padding too)",
        ),
        "llmu_opt": Recipe(
            title="LLMU, the released run",
            model="facebook/opt-1.3b",
            corpus="PKU-SafeRLHF 330k_train unsafe answers; retain and random answers TruthfulQA",
            settings=_model("facebook/opt-1.3b", LLMU)
            | _read(
                LLMU,
                {
                    "method.forget": "llmu",
                    "llmu.weight": 0.5,
                    "llmu.mismatch_weight": 1.0,
                    "mismatch.count": 5,
                },
            )
            | _read(
                LLMU,
                {
                    "method.retain": "kl",
                    "method.retain_weight": 1.0,
                    "train.learning_rate": 2e-6,
                    "train.batch_size": 2,
                },
            )
            | _read(
                LLMU,
                {
                    "train.unit": "steps",
                    "train.length": 1000.0,
                    "train.schedule": "linear",
                    "train.warmup_fraction": 0.0,
                },
            )
            | _read(
                LLMU,
                {
                    "train.weight_decay": 0.01,
                    "train.max_grad_norm": UNCLIPPED,
                    "data.template": "### Question: {prompt}\n ### Answer:",
                },
            ),
            departures=(
                "one random answer a presentation (released: the same five for the whole batch),"
                " answers alone are counted, KL at label positions (released: everywhere), 1000"
                " steps (released: 1144, the last ones at rate 0)"
            ),
        ),
        "blackbox_llmu_zephyr_biology": Recipe(
            title="LLMU of two terms, black-box study",
            model=ZEPHYR,
            corpus=BIOLOGY,
            settings=_model(ZEPHYR, KNOCK) | _blackbox(0.07, 5000, 1024),
            departures=_BLACKBOX_DEPARTURES,
        ),
        "blackbox_llmu_llama_biology": Recipe(
            title="LLMU of two terms, black-box study",
            model=LLAMA3,
            corpus=BIOLOGY,
            settings=_model(LLAMA3, KNOCK) | _blackbox(0.09, 5000, 1024),
            departures=_BLACKBOX_DEPARTURES,
        ),
        "blackbox_llmu_zephyr_wmdp": Recipe(
            title="LLMU of two terms, black-box study",
            model=ZEPHYR,
            corpus=(
                "1,000 bio and 1,000 cyber documents of WMDP; retain 2,000 paragraphs of"
                " wikitext-103"
            ),
            settings=_model(ZEPHYR, KNOCK) | _blackbox(0.0036, 1000, 512),
            departures=_BLACKBOX_DEPARTURES,
        ),
        "blackbox_llmu_llama_wmdp": Recipe(
            title="LLMU of two terms, black-box study",
            model=LLAMA3,
            corpus=(
                "1,000 bio and 1,000 cyber documents of WMDP; retain 2,000 paragraphs of"
                " wikitext-103"
            ),
            settings=_model(LLAMA3, KNOCK) | _blackbox(0.0010, 1500, 512),
            departures=_BLACKBOX_DEPARTURES,
        ),
        "blackbox_rmu_zephyr_biology": Recipe(
            title="RMU, black-box study",
            model=ZEPHYR,
            corpus=BIOLOGY,
            settings=_model(ZEPHYR, KNOCK)
            | _rmu("5|6|7", steering=10.0, weight=50.0, layer=15, batch=1, steps=200, source=KNOCK)
            | _read(KNOCK, {"train.learning_rate": 8e-5, "data.max_tokens": 1024}),
            departures=(
                f"{_RMU_DEPARTURES}; the loss looks at block 15 and blocks 5 to 7 are trained, as"
                " released"
            ),
        ),
        "blackbox_rmu_llama_biology": Recipe(
            title="RMU, black-box study",
            model=LLAMA3,
            corpus=BIOLOGY,
            settings=_model(LLAMA3, KNOCK)
            | _rmu("5|6|7", steering=30.0, weight=50.0, layer=7, batch=1, steps=100, source=KNOCK)
            | _read(KNOCK, {"train.learning_rate": 8e-5, "data.max_tokens": 1024}),
            departures=_RMU_DEPARTURES,
        ),
        "blackbox_rmu_llama_wmdp": Recipe(
            title="RMU, black-box study",
            model=LLAMA3,
            corpus=WMDP_BIO,
            settings=_model(LLAMA3, KNOCK)
            | _rmu("5|6|7", steering=30.0, weight=1200.0, layer=7, batch=4, steps=150, source=KNOCK)
            | _open(
                "the default of the same code",
                {"train.learning_rate": 8e-5, "data.max_tokens": 512},
            ),
            departures=_RMU_DEPARTURES,
        ),
        "coreset_rmu_wmdp": Recipe(
            title="RMU in the coreset study, at any ratio",
            model=ZEPHYR,
            corpus="600 documents of cais/wmdp-bio-forget-corpus (or -cyber-), retain wikitext",
            settings=_model(ZEPHYR, CORESET_MODELS)
            | _open(
                "not stated; the benchmark's own run",
                {
                    name: s.value
                    for name, s in _rmu(
                        "5|6|7", steering=6.5, weight=1200.0, layer=7, batch=4, steps=150
                    ).items()
                }
                | {"data.max_tokens": 512},
            )
            | _read(CORESET_LOSSES, _RMU)
            | _read(
                f"{CORESET_STUDY}: 1, 10, 20, 100 epochs at 100, 10, 5, 1 %",
                {"train.unit": "presentations", "train.length": 600.0},
            )
            | _read(CORESET_STUDY, {"train.learning_rate": 5e-5}),
            departures=_RMU_DEPARTURES,
        ),
        "coreset_npo_wmdp": Recipe(
            title="NPO in the coreset study, at any ratio",
            model=ZEPHYR,
            corpus="600 documents of cais/wmdp-bio-forget-corpus (or -cyber-), retain wikitext",
            settings=_model(ZEPHYR, CORESET_MODELS)
            | _read(
                CORESET_STUDY,
                {
                    "train.learning_rate": 7e-6,
                    "train.unit": "steps",
                    "train.length": 140.0,
                    "train.batch_size": 4,
                },
            )
            | _read(CORESET_LOSSES, {"method.forget": "npo", "method.retain": "nll"})
            | _open(
                "not stated; the nearest code of the group",
                {"method.retain_weight": 1.0, "npo.beta": 0.0225},
            )
            | _open("not stated; the benchmark's own run", {"data.max_tokens": 512}),
            departures=(
                "beta is that of the group's other code, whose ratio is a mean per token, where the"
                " study's and ours is summed over the text"
            ),
        ),
    }
)
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {name: _with_unsaid(recipe) for name, recipe in _PUBLISHED.items()}
)
