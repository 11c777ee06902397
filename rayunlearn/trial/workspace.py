"""What one (data, model) pair needs: its corpus and its models, made once and found again by
digest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from rayunlearn.config import (
    Data,
    Model,
    Trial,
    Value,
    block_numbers,
    flatten,
    names_in,
    probe_limits,
    rounded_share,
    trial_id,
    with_values,
)
from rayunlearn.data.documents import Corpus
from rayunlearn.data.general_text import general_documents
from rayunlearn.data.hub import is_local
from rayunlearn.data.probe_sets import MADE_SETS, with_full_sources
from rayunlearn.data.tokenize import cut_note
from rayunlearn.errors import require, unknown_name
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.retain import RETAIN
from rayunlearn.metrics.evaluate import chosen_metrics, require_gold
from rayunlearn.metrics.harness import task_manager
from rayunlearn.models.folder import check_model, read_tokenizer, require_positions
from rayunlearn.models.folder_answers import answer_of_folder
from rayunlearn.models.model_files import model_config, resolve_model
from rayunlearn.models.outline import check_family
from rayunlearn.models.scratch import LONGEST_TOKENS, SHAPES
from rayunlearn.ranges import required_inputs
from rayunlearn.registry import check_trial
from rayunlearn.schema import RIGHT_METRIC
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
from rayunlearn.trial.input_names import check_inputs

# settings that may hold a path
PATHS = (
    "data.path",
    "model.name",
    "model.gold",
    "model.unlearned",
    "select.judge_model",
    "judge.answers",
    "attack.chat_model",
    "attack.file",
    "retain.file",
    "harness.include",
    "measure.harness_include",
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
    """`registry.check_trial`, with paths in full, and what only the model's folder can say: it can
    be used, the layers exist, its context holds the texts, its tokenizer has the chat template that
    the trial asks for; and the inputs of its functions. Raises UserError before anything runs.
    """
    checked = _with_right_metric(with_full_paths(check_trial(trial)))
    check_inputs(checked)
    check_named_models(checked)
    model = checked.model
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
    _check_retained(checked)
    _check_tasks(checked)
    _check_probe_limits(checked)
    _check_explained_splits(checked)
    has_gold = model.teach or bool(model.gold)
    require_gold(checked.measure.metrics, has_gold, "model.teach, or model.gold")
    return checked


def _with_right_metric(trial: Trial) -> Trial:
    """The trial with the metric that says what is answered right, where questions are explained:
    what emphasis recovers is counted over these. It reads the answer's pass, which is made anyway.
    """
    metrics = trial.measure.metrics
    if trial.explain.documents == 0 or RIGHT_METRIC in chosen_metrics(metrics):
        return trial
    return with_values(trial, {"measure.metrics": f"{metrics},{RIGHT_METRIC}"})


def _check_explained_splits(trial: Trial) -> None:
    """Raise UserError for a split in `explain.splits` that the data does not have."""
    names = names_in(trial.explain.splits)
    if names and trial.explain.documents:
        splits = corpus_of(trial.data, trial.model).probes
        for name in names:
            if name not in splits:
                raise unknown_name("split in explain.splits", name, splits)


def _check_probe_limits(trial: Trial) -> None:
    """Raise UserError for a limit of a set that the data does not have."""
    names = set(filter(None, probe_limits(trial.measure.limit_probes)))
    if names:
        present = {*corpus_of(trial.data, trial.model).probes, *MADE_SETS}
        for name in names - present:
            raise unknown_name("set in measure.limit_probes", name, present)


def with_full_paths(trial: Trial) -> Trial:
    """The trial with every path on this machine in full: workers stand in other folders, and a
    later command may. Hub names stay as they are, and the trial's id is the same.
    """
    flat = flatten(trial)
    full = {name: full_path(str(flat[name])) for name in PATHS if flat[name]}
    full["data.probes"] = with_full_sources(trial.data.probes)
    changed: dict[str, Value] = {n: value for n, value in full.items() if value != flat[n]}
    return with_values(trial, changed) if changed else trial


def full_path(name: str) -> str:
    """A path on this machine in full; anything else as it is."""
    return str(Path(name).expanduser().resolve()) if is_local(name) else name


def check_named_models(trial: Trial) -> None:
    """Raise UserError for a model that the trial names and cannot use (`models.folder`)."""
    data, model = trial.data, trial.model
    named = {"name": model.name, "gold": model.gold, "unlearned": model.unlearned}
    if model.name == "scratch":
        rule = "data.template must not be 'chat' when model.name is 'scratch'"
        require(data.template != "chat", rule, data.template)
        require_positions(data.max_tokens, LONGEST_TOKENS, "a model built here")
        del named["name"]
    for field, name in named.items():
        if name:
            setting = f"model.{field}"
            check_model(name, setting=setting, template=data.template, max_tokens=data.max_tokens)
    if trial.judge.answers:
        judge = trial.judge.answers
        check_model(judge, setting="judge.answers", template="chat", max_tokens=0)


def cut_texts(trial: Trial) -> tuple[str, ...]:
    """A line on the documents and probes that `data.max_tokens` cuts; none where none is, and for a
    model built here, whose vocabulary is made with it.
    """
    return () if trial.model.name == "scratch" else _cut_texts(trial.data, trial.model)


@lru_cache(maxsize=16)
def _cut_texts(data: Data, model: Model) -> tuple[str, ...]:
    folder, corpus = resolve_model(model.name), corpus_of(data, model)

    def note() -> tuple[str, ...]:
        return cut_note(corpus, read_tokenizer(folder), data.template, data.max_tokens)

    question = ["cut", corpus.digest, data.template, data.max_tokens]
    return tuple(answer_of_folder(folder, question, note))


def _check_selection(trial: Trial) -> None:
    """Raise UserError where selecting the coreset would take too long or too much memory, and where
    its control has too few documents.
    """
    select = trial.select
    if trial.stage == "unlearned" and select.text == "other_documents":
        corpus = corpus_of(trial.data, trial.model)
        n_kept = rounded_share(select.ratio, len(corpus.forget))
        corpus.documents_beside_forget(select.other_split, n_kept)
    if trial.stage != "unlearned" or select.name not in COSTS:
        return
    n_documents = len(corpus_of(trial.data, trial.model).forget)
    n_ranked = n_places(n_documents, select.ratio)
    if n_documents > RANKED_WHOLE:
        width = (
            PROJECTION_WIDTH**2
            if "gradients" in required_inputs(SELECTORS[select.name].function)
            else model_width(trial.model)
        )
        require_affordable(select.name, n_documents, width, n_ranked)


def _check_tasks(trial: Trial) -> None:
    """Raise UserError for a task that lm-evaluation-harness does not have, and where it is not
    installed.
    """
    measure, harness = trial.measure, trial.harness
    for tasks, include in (
        (names_in(measure.harness), measure.harness_include),
        (names_in(harness.task), harness.include),
    ):
        if tasks:
            _check_tasks_once(tuple(tasks), include)


@lru_cache(maxsize=8)
def _check_tasks_once(tasks: tuple[str, ...], include: str) -> None:
    task_manager(tasks, include)


def _check_retained(trial: Trial) -> None:
    """Raise UserError where choosing retain documents would take too long or too much memory, and
    where there are too few general texts.
    """
    retain = trial.retain
    if trial.stage != "unlearned" or trial.method.retain == "none" or retain.is_full:
        return
    corpus = corpus_of(trial.data, trial.model)
    n_documents, n_forget = len(corpus.retain), len(corpus.forget)
    require(n_documents > 0, "retain.ratio needs a retain set; this one has", n_documents)
    n_general = retain.sizes(n_documents)[1]
    if retain.file:
        general_documents(corpus, n_general, retain.file, retain.seed)
    if retain.name in COSTS and n_documents > RANKED_WHOLE:
        n_ranked = n_forget if retain.name == "nearest" else n_places(n_documents, retain.ratio)
        require_affordable(retain.name, n_documents, model_width(trial.model), n_ranked)


def model_width(model: Model) -> int:
    """Numbers of a hidden state, without loading weights."""
    if model.name == "scratch":
        return SHAPES[model.size].width
    return _size_of_model(model, "hidden_size")


def model_depth(model: Model) -> int:
    """Number of transformer blocks, without loading weights."""
    if model.name == "scratch":
        return SHAPES[model.size].blocks
    return _size_of_model(model, "num_hidden_layers")


def _size_of_model(model: Model, name: str) -> int:
    folder = resolve_model(model.name)

    def read() -> int:
        return int(getattr(model_config(folder).get_text_config(), name))

    return int(answer_of_folder(folder, [name], read))


def workspace_of(trial: Trial, cache: Path) -> Workspace:
    """Where things are for this trial, whether they have been made yet or not."""
    corpus = corpus_of(trial.data, trial.model)
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
    report = partial(progress, role)
    train_base_or_gold(
        trial, workspace.corpus, role, directory, report, cache=Path(workspace.cache)
    )


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
