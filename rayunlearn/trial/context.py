"""What the parts of a trial work with: its settings, its corpus and folders, and the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rayunlearn.config import Trial
from rayunlearn.data.documents import Corpus
from rayunlearn.data.tokenize import opening_ids
from rayunlearn.models.packed_layout import share_opening
from rayunlearn.trial.model_state import ModelState, cached_in_worker, reset_weights
from rayunlearn.trial.workspace import Workspace, start_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TrialContext:
    """One trial on one worker: its settings, the corpus and folders of its (data, model) pair, and
    the model it is about.

    The value is frozen, the weights in `state.model` are not: a function that needs those of the
    base model says so. Another trial on the same model is `dataclasses.replace(context,
    trial=...)`.
    """

    trial: Trial
    workspace: Workspace
    state: ModelState

    def __post_init__(self) -> None:
        # what the passes of this trial may read once; texts of other templates begin otherwise
        if self.trial.data.template == "chat":
            opening = cached_in_worker(
                self.state, ("opening",), lambda: opening_ids(self.state.tokenizer)
            )
            share_opening(self.state.model, opening)

    @property
    def corpus(self) -> Corpus:
        """The documents and probes of the trial."""
        return self.workspace.corpus

    @property
    def cache(self) -> Path:
        """The folder of everything that is made once for all trials."""
        return self.workspace.cache

    @property
    def model(self) -> PreTrainedModel:
        """The model as it stands now."""
        return self.state.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.state.tokenizer


def start_context(trial: Trial, workspace: Workspace) -> TrialContext:
    """The trial with this process's model reset to the weights that the trial begins with.

    Whatever the model of that folder held is lost. Raises UserError and CorruptWeightsError as
    `start_folder` and `reset_weights` do.
    """
    return TrialContext(trial, workspace, reset_weights(start_folder(trial, workspace)))


def base_context(trial: Trial, workspace: Workspace) -> TrialContext:
    """The trial with this process's model reset to the weights of the base model.

    They are the weights that an unlearning trial begins with, in one and the same model: what is
    asked of base is asked before training, never between training and measuring.
    """
    return TrialContext(trial, workspace, reset_weights(workspace.base))
