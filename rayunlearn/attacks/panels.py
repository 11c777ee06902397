"""Panels: named lists of attacks with their settings, as data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rayunlearn.attacks.base import check_package_installed
from rayunlearn.attacks.table import ATTACKS
from rayunlearn.config import Attack, Value
from rayunlearn.errors import require, unknown_name


@dataclass(frozen=True)
class PanelEntry:
    """One attack of a panel: its name, what is set of it (`documents`, `bits`), and whether its
    `strength_of` is searched.
    """

    name: str
    values: tuple[tuple[str, Value], ...] = ()
    tuned: bool = False

    @property
    def words(self) -> str:
        """`round_to_nearest bits=4`."""
        return attack_setting(self.name, dict(self.values))


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Attacks with their seeds. `budget` trials per study, asked in batches of `batch`; attacks
    that draw nothing run once.

    `curve_points`: most points of a recovery curve. A hundred is every step of the strengths that
    are searched, and a look costs about half of a step (`attack.AttackInputs`), so that no curve
    costs more than fifty steps of training, however many there are.

    `utility_loss`: share of the attacked model's utility that a searched strength may cost at most;
    1 lets it cost all.
    """

    entries: tuple[PanelEntry, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: int = 6
    batch: int = 3
    curve_points: int = Attack().curve_points
    utility_loss: float = 1.0


def attack_setting(name: str, values: Mapping[str, Value]) -> str:
    """`relearning documents=8 learning_rate=0.001 steps=50`: an attack and what was set of it,
    without seeds.
    """
    return " ".join(
        [
            name,
            *(
                f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in sorted(values.items())
            ),
        ]
    )


def panel_of(name: str) -> Panel:
    """The panel of that name. Raises UserError with the nearest for an unknown one."""
    if name not in PANELS:
        raise unknown_name("panel", name, PANELS)
    return PANELS[name]


def restrict_panel(panel: Panel, names: Iterable[str]) -> Panel:
    """The panel with these attacks alone; one that it does not have comes with its defaults. Raises
    UserError for an unknown name.
    """
    entries: list[PanelEntry] = []
    for name in names:
        if name not in ATTACKS:
            raise unknown_name("attack", name, ATTACKS)
        check_package_installed(name, ATTACKS[name])
        entries += [entry for entry in panel.entries if entry.name == name] or [PanelEntry(name)]
    return replace(panel, entries=tuple(entries))


def chosen_panel(
    name: str,
    *,
    names: Iterable[str] = (),
    n_seeds: int | None = None,
    curve_points: int | None = None,
    utility_loss: float = 1.0,
) -> Panel:
    """The panel `name` with what a caller changes: only these attacks, so many seeds, so many
    points of a recovery curve at most (None: the panel's own), and what an attack may cost.

    Raises UserError for an unknown panel or attack, for a number under 1, and for a `utility_loss`
    outside [0, 1].
    """
    require(0 <= utility_loss <= 1, "attacks.utility_loss must be in [0, 1]", utility_loss)
    panel, only = replace(panel_of(name), utility_loss=utility_loss), tuple(names)
    if only:
        panel = restrict_panel(panel, only)
    require(n_seeds is None or n_seeds >= 1, "--seeds must be >= 1", n_seeds)
    if n_seeds is not None:
        panel = replace(panel, seeds=tuple(range(n_seeds)))
    require(curve_points is None or curve_points >= 1, "--curve-points must be >= 1", curve_points)
    return panel if curve_points is None else replace(panel, curve_points=curve_points)


TRAINING_ATTACKS = ("heldout_relearning", "unrelated_training")
FEW_SHOT_ATTACKS = (PanelEntry("few_shot_retain"), PanelEntry("few_shot_neighbours"))
FILLER_ATTACKS = tuple(PanelEntry(f"filler_{name}") for name in ("latin", "english", "hindi"))

PARAPHRASE_ATTACKS = tuple(
    PanelEntry(name)
    for name in (
        "conversation",
        "poem",
        "terms_removed",
        "terms_removed_options",
        "variables",
        "paraphrase",
    )
)

# of data that has second names and links (data.linked), or with a file or a chat model
LINKED_ATTACKS = tuple(PanelEntry(name) for name in ("aliases", "multi_hop", "combined"))

TRANSLATIONS = tuple(
    PanelEntry("translation", (("language", name),)) for name in ("french", "german", "hindi")
)

JAILBREAKS = tuple(PanelEntry(name) for name in ("role_play", "jailbreak_prefix", "insistence"))

ROUNDING_ATTACKS = (
    PanelEntry("round_to_nearest", (("bits", 8),)),
    PanelEntry("round_to_nearest", (("bits", 4),)),
)

CALIBRATED_QUANTIZATION = (PanelEntry("gptq"), PanelEntry("awq"))

PROBING_ATTACKS = tuple(
    PanelEntry(name)
    for name in ("logit_lens", "linear_probe", "linear_probe_held_in", "truth_probe")
)

SEARCHED_PROMPTS = (
    PanelEntry("noise"),
    PanelEntry("gcg", tuned=True),
    PanelEntry("soft_prompt", tuned=True),
    PanelEntry("sampled_attempts"),
)

DAMAGE = (
    PanelEntry("magnitude_pruning"),
    PanelEntry("weight_noise"),
    PanelEntry("direction_ablation"),
    PanelEntry("direction_ablation_retain"),
)

# what experiments/metric_robustness.py tries metrics by; relearning is under its default, meant to
# leave models different
METRIC_STRESS = (
    PanelEntry("jailbreak_prefix"),
    PanelEntry("relearning", (("learning_rate", 3e-4), ("steps", 40))),
    PanelEntry("noise"),
    PanelEntry("linear_shortcut"),
)

# what experiments/metric_faithfulness.py tries metrics by: relearning gives knowledge back,
# rounding (NF4, OpenUnlearning's choice) may uncover it, training on unrelated text does neither
METRIC_FAITHFULNESS = (
    PanelEntry("relearning", (("learning_rate", 3e-4), ("steps", 20))),
    PanelEntry("four_bit_normal_float"),
    PanelEntry("unrelated_training", (("learning_rate", 3e-4), ("steps", 20))),
)

# what experiments/faithfulness.py holds coresets against the full set by; unrelated text is
# relearning's control too
FULL_PANEL_EXTRAS = (
    PanelEntry("relearning", (("documents", 10),)),
    PanelEntry("unrelated_training", (("documents", 10),)),
    PanelEntry("round_to_nearest", (("bits", 4),)),
    PanelEntry("few_shot_retain"),
)

# of a loaded model: rates at which it learns and is not ruined, and few steps, since one of all
# weights takes a processor seconds (docs/how-to/real-model.md)
_LOADED_RATE: tuple[tuple[str, Value], ...] = (("learning_rate", 5e-5), ("steps", 8))
PRETRAINED = (
    PanelEntry("relearning", _LOADED_RATE),
    PanelEntry("heldout_relearning", _LOADED_RATE),
    PanelEntry("unrelated_training", _LOADED_RATE),
    PanelEntry("few_shot_retain"),
    PanelEntry("few_shot_neighbours"),
    PanelEntry("filler_english"),
    PanelEntry("conversation"),
    PanelEntry("round_to_nearest", (("bits", 4),)),
)

PANELS: Mapping[str, Panel] = {
    "quick": Panel(
        entries=(
            PanelEntry("relearning", (("documents", 10),)),
            *(PanelEntry(name) for name in TRAINING_ATTACKS),
            *ROUNDING_ATTACKS,
            FEW_SHOT_ATTACKS[0],
            PARAPHRASE_ATTACKS[0],
        )
    ),
    "black_box": Panel(
        entries=(
            *FEW_SHOT_ATTACKS,
            *FILLER_ATTACKS,
            *PARAPHRASE_ATTACKS,
            *TRANSLATIONS,
            PanelEntry("unrelated_training", tuned=True),
        )
    ),
    "linked": Panel(entries=LINKED_ATTACKS),
    "metrics": Panel(entries=METRIC_STRESS, seeds=(0,)),
    "metric_faithfulness": Panel(entries=METRIC_FAITHFULNESS, seeds=(0,), curve_points=2),
    "coresets": Panel(entries=FULL_PANEL_EXTRAS, seeds=(0,)),
    "pretrained": Panel(entries=PRETRAINED, seeds=(0,), curve_points=4),
    "full": Panel(
        entries=(
            *(PanelEntry("relearning", (("documents", n),), tuned=True) for n in (1, 10, 0)),
            *(PanelEntry(name, tuned=True) for name in TRAINING_ATTACKS),
            *ROUNDING_ATTACKS,
            *CALIBRATED_QUANTIZATION,
            *DAMAGE,
            *FEW_SHOT_ATTACKS,
            *FILLER_ATTACKS,
            *PARAPHRASE_ATTACKS,
            *TRANSLATIONS,
            *JAILBREAKS,
            *SEARCHED_PROMPTS,
            *PROBING_ATTACKS,
        )
    ),
}
