"""A small sweep in a process of its own, for tests/test_hash_seeds.py: `python -m
tests.hash_seed_process MODEL OUTPUT` runs some trials and attacks on the untrained model in MODEL.
"""

import sys
from pathlib import Path

import torch

from rayunlearn.config import Trial, Value, with_values
from rayunlearn.trial.attack import run_attack_or_trial
from rayunlearn.trial.workspace import validate_trial, workspace_of

COMMON: dict[str, Value] = {
    "model.teach": False,
    "data.size": "tiny",
    "train.length": 2,
    "train.batch_size": 4,
    "stop.utility_floor": 0.0,
    "measure.metrics": "probability,truth_ratio,rouge_l_f1",
    "measure.max_new_tokens": 1,
    # what a set could reorder is there with eight documents of each split as with all
    "measure.limit_probes": "8",
    "method.layer": 1,
}
# every extractor that needs no second model, selectors of each kind, every text arm
TRIALS: tuple[dict[str, Value], ...] = (
    {"stage": "base", "explain.documents": 2},
    {
        "select.name": "keyword_coverage",
        "select.extractor": "linked",
        "select.ratio": 0.2,
        "select.text": "keywords_only",
    },
    {
        "select.name": "craig",
        "select.extractor": "slots",
        "select.ratio": 0.1,
        "select.text": "random_words",
        "method.forget": "idk",
    },
    {
        "select.name": "upcore",
        "select.extractor": "textrank",
        "select.ratio": 0.1,
        "select.text": "shuffled_keywords",
        "method.forget": "rmu",
        "method.retain": "activation",
    },
    {
        "select.name": "moderate",
        "select.extractor": "embedding",
        "select.ratio": 0.1,
        "select.text": "non_keywords",
        "method.forget": "simnpo",
    },
    {"select.name": "ccs", "select.extractor": "log_odds", "select.ratio": 0.1},
    {"select.ratio": 0.1, "attack.name": "linear_probe"},
    {"select.ratio": 0.1, "attack.name": "heldout_relearning", "relearning.steps": 2},
    {"select.ratio": 0.1, "attack.name": "terms_removed"},
    {"select.ratio": 0.1, "attack.name": "random_prefix"},
)


def main(model: str, output: Path) -> None:
    """Run every trial; raises AssertionError for one that does not complete."""
    torch.set_num_threads(1)
    for values in TRIALS:
        trial = validate_trial(with_values(Trial(), COMMON | values | {"model.name": model}))
        workspace = workspace_of(trial, output / "cache")
        assert (
            run_attack_or_trial(trial, workspace, output / "seeds" / "1", "seeds", "1")
            == "complete"
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
