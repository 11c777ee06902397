"""What config.json alone says of a family, before anything is scheduled."""

from pathlib import Path

import pytest
import torch
from transformers import T5Config

from rayunlearn.config import Model
from rayunlearn.errors import UserError
from rayunlearn.models import outline
from rayunlearn.models.outline import check_family, meta_model
from tests.families import FAMILIES, toy_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_known_by_its_config_alone(family: str, tmp_path: Path) -> None:
    toy = toy_model(family)
    toy.config.save_pretrained(tmp_path)
    made = meta_model(Model(name=str(tmp_path)))
    check_family(str(tmp_path))
    assert type(made) is type(toy) and made.device.type == "meta"
    shapes = [(name, p.shape) for name, p in toy.named_parameters()]
    assert [(name, p.shape) for name, p in made.named_parameters()] == shapes


def test_a_model_that_predicts_no_next_token_is_refused(tmp_path: Path) -> None:
    T5Config(d_model=16, num_layers=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="describes no model that transformers can build"):
        check_family(str(tmp_path))


def test_a_model_without_one_list_of_blocks_or_without_a_head_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = toy_model("llama")
    monkeypatch.setattr(outline, "meta_model", lambda _model: whole)
    monkeypatch.setattr(whole, "get_output_embeddings", lambda: None)
    with pytest.raises(UserError, match="must have output embeddings"):
        check_family(str(tmp_path / "headless"))
    whole.model.layers = torch.nn.Sequential(*whole.model.layers)
    with pytest.raises(UserError, match="must keep its blocks in one list"):
        check_family(str(tmp_path / "blockless"))
