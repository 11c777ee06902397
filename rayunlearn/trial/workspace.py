"""What one (data, model) pair needs: its corpus and its models, made once and found again by
digest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rayunlearn.config import Model, Trial, block_numbers, trial_id
from rayunlearn.data.documents import Corpus
from rayunlearn.errors import require
from rayunlearn.lazy import transformers
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.retain import RETAIN
from rayunlearn.models.load import check_template, resolve_model
from rayunlearn.models.outline import check_family
from rayunlearn.models.scratch import SHAPES
from rayunlearn.ranges import required_inputs
from rayunlearn.registry import check_trial
from rayunlearn.selectors.cost import COSTS, RANKED_WHOLE, n_places, require_affordable
from rayunlearn.selectors.random_projection import PROJECTION_WIDTH
from rayunlearn.selectors.table import SELECTORS
from rayunlearn.storage.artifact_cache import cached_folder, folder_is_whole
from rayunlearn.train.adapters import check_adapter
from rayunlearn.train.teach import TRAINED_ROLES, train_base_or_gold
from rayunlearn.trial.identity import (
    base_model_digest,
    cached_model_digest,
    content_digests,
    corpus_of,
)


def data_model_pair(trial: Trial) -> tuple[object, ...]:
    """What trials share a workspace by: data and model."""
    return (trial.data, trial.model)


@dataclass(frozen=True)
class Workspace:
    """Corpus, model folders and cache of one (data, model) pair. `gold` is '' where there is none,
    `unlearned` where it is trained here.
    """

    corpus: Corpus
    base: str
    gold: str
    base_digest: str
    cache: Path
    unlearned: str = ""


def identity_in(trial: Trial, workspace: "Workspace") -> str:
    """`identify` of a trial whose workspace is there."""
    return trial_id(trial, workspace.corpus.digest, workspace.base_digest, content_digests(trial))


def require_same_weights(trial: Trial, workspace: "Workspace") -> None:
    """Raise UserError where a model directory that was given is no longer what the workspace was
    made for: the trial's id would be of other weights. (A trained model is checked when it is
    loaded.)
    """
    if trial.model.teach:
        return
    rule = f"{workspace.base} must be what it was when the run was planned"
    found_digest = cached_model_digest(workspace.base)
    require(found_digest == workspace.base_digest, f"{rule}, {workspace.base_digest}", found_digest)


def start_folder(trial: Trial, workspace: Workspace) -> str:
    """Folder of the weights that the trial begins with. Raises UserError for stage gold where there
    is no gold model.
    """
    if trial.stage == "gold":
        require(
            bool(workspace.gold),
            "stage 'gold' needs a gold model (model.teach, or model.gold)",
            workspace.gold,
        )
        return workspace.gold
    return (
        workspace.unlearned
        if trial.stage == "unlearned" and workspace.unlearned
        else workspace.base
    )


def validate_trial(trial: Trial) -> Trial:
    """`registry.check_trial`, and what only the model can say: the layers exist, its tokenizer has
    the chat template that the trial asks for. Raises UserError before anything runs.
    """
    checked = check_trial(trial)
    model = checked.model
    check_template(checked.data.template, (model.name, model.gold, model.unlearned))
    if model.name != "scratch":
        check_family(model.name)
    train = checked.train
    if train.adapter != "none" and checked.stage == "unlearned":
        check_adapter(model, train.adapter, train.parameters, tuple(block_numbers(train.layers)))
    loss_inputs = {
        *required_inputs(FORGET[trial.method.forget].function),
        *required_inputs(RETAIN[trial.method.retain].function),
    }
    trained_blocks = block_numbers(trial.train.layers)
    depth = model_depth(trial.model) if "hidden" in loss_inputs or trained_blocks else 0
    require(
        max(trained_blocks, default=-1) < max(depth, 1),
        f"train.layers must be < {depth}, the model's number of blocks",
        trial.train.layers,
    )
    if "hidden" in loss_inputs:
        require(
            trial.method.layer < depth,
            f"method.layer must be < {depth}, the model's number of blocks",
            trial.method.layer,
        )
    _check_selection(checked)
    return checked


def _check_selection(trial: Trial) -> None:
    """Raise UserError where selecting the coreset would take too long or too much memory."""
    select = trial.select
    if trial.stage != "unlearned" or select.name not in COSTS:
        return
    n_documents = len(corpus_of(trial.data).forget)
    n_ranked = n_places(n_documents, select.ratio)
    if n_documents > RANKED_WHOLE:
        width = (
            PROJECTION_WIDTH**2
            if "gradients" in required_inputs(SELECTORS[select.name].function)
            else model_width(trial.model)
        )
        require_affordable(select.name, n_documents, width, n_ranked)


def model_width(model: Model) -> int:
    """Numbers of a hidden state, without loading weights."""
    if model.name == "scratch":
        return SHAPES[model.size].width
    return int(_model_config(model).hidden_size)


def model_depth(model: Model) -> int:
    """Number of transformer blocks, without loading weights."""
    if model.name == "scratch":
        return SHAPES[model.size].blocks
    return int(_model_config(model).num_hidden_layers)


def _model_config(model: Model) -> Any:
    return transformers.AutoConfig.from_pretrained(
        resolve_model(model.name), trust_remote_code=False
    )


def workspace_of(trial: Trial, cache: Path) -> Workspace:
    """Where things are for this trial, whether they have been made yet or not."""
    corpus = corpus_of(trial.data)
    start = base_model_digest(trial.model, corpus.digest, trial.data)
    folder = cache / "models" / start
    if trial.model.teach:
        return Workspace(corpus, str(folder / "base"), str(folder / "gold"), start, cache)
    return Workspace(
        corpus, trial.model.name, trial.model.gold, start, cache, trial.model.unlearned
    )


def prepare_models(
    trial: Trial,
    cache: Path,
    progress: Callable[[str, int, int], None],
    roles: Sequence[str] = ("base", "gold"),
) -> Workspace:
    """Teach the models that are missing or damaged (one process at a time per folder) and return
    the workspace.

    `progress(role, done, planned)` is called while training. Taking models as they are needs no
    preparation.
    """
    workspace = workspace_of(trial, cache)
    for role in roles if trial.model.teach else ():
        make = partial(_train_models, trial, workspace, role, progress)
        cached_folder(model_folder_of(workspace, role), trained_model_key(workspace, role), make)
    return workspace


def _train_models(
    trial: Trial,
    workspace: Workspace,
    role: str,
    progress: Callable[[str, int, int], None],
    directory: Path,
) -> None:
    train_base_or_gold(trial, workspace.corpus, role, directory, partial(progress, role))


def model_folder_of(workspace: Workspace, role: str) -> Path:
    """Where the model of a role is: `base` or `gold`."""
    return Path(workspace.base if role == "base" else workspace.gold)


def trained_model_key(workspace: Workspace, role: str) -> dict[str, object]:
    """What a trained model was made from."""
    return {"start": workspace.base_digest, "role": role}


def missing_roles(trial: Trial, cache: Path) -> tuple[str, ...]:
    """The trained models of the trial's (data, model) pair that `prepare` has to make: those that
    are not here as they were written.
    """
    workspace = workspace_of(trial, cache)
    return tuple(
        role
        for role in TRAINED_ROLES
        if trial.model.teach
        and not folder_is_whole(
            model_folder_of(workspace, role), trained_model_key(workspace, role)
        )
    )
