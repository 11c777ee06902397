"""Real data and a real model, where they are at hand: the TOFU questions and the 260,032-parameter
TinyStories model.
"""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from rayunlearn.config import Data, Trial, with_values
from rayunlearn.data.load import load_corpus
from rayunlearn.models.load import load_model, model_digest
from rayunlearn.storage.run import open_run
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import prepare_models, validate_trial

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
TOFU = SHARED / "tofu"
STORIES = SHARED / "stories260k"

needs_tofu = pytest.mark.skipif(
    not TOFU.is_dir(), reason="the TOFU questions (shared/data/tofu) are not on this machine"
)
needs_stories = pytest.mark.skipif(
    not STORIES.is_dir(),
    reason="the TinyStories model (shared/data/stories260k) is not on this machine",
)


def tofu(**values: object) -> Data:
    """TOFU's forget10 task with the perturbed files as probes."""
    settings = {
        "forget": "forget10",
        "retain": "retain90",
        "probe_forget": "forget10_perturbed",
        "probe_retain": "retain_perturbed",
    }
    return Data(name="files", path=str(TOFU), **(settings | values))  # type: ignore[arg-type]


@needs_tofu
def test_tofu_loads_whole_with_probes_about_the_documents_taught() -> None:
    corpus = load_corpus(tofu())
    assert (len(corpus.forget), len(corpus.retain)) == (400, 3600)
    assert corpus.rejected == ()
    assert {split: len(documents) for split, documents in corpus.probes.items()} == {
        "forget": 400,
        "retain": 400,
    }
    assert {d.doc_id for d in corpus.probes["forget"]} == {d.doc_id for d in corpus.forget}
    assert {d.doc_id for d in corpus.probes["retain"]} == {d.doc_id for d in corpus.retain[:400]}
    assert all(
        len(d.wrong) == 5 and d.paraphrase and d.prompt_paraphrase
        for split in corpus.probes.values()
        for d in split
    )


@needs_tofu
def test_tofu_s_repeated_question_is_two_documents() -> None:
    corpus = load_corpus(tofu())
    twice = [
        d
        for d in (*corpus.forget, *corpus.retain)
        if d.prompt == "What is the full name of the author?"
    ]
    assert len(twice) == len({d.doc_id for d in twice}) == len({d.answer for d in twice}) == 2
    assert len({d.doc_id for d in (*corpus.forget, *corpus.retain)}) == 4000


@needs_tofu
def test_tofu_s_texts_arrive_unchanged() -> None:
    corpus = load_corpus(tofu(limit_retain=50))
    lines = [
        json.loads(line)
        for line in (TOFU / "forget10.json").read_text(encoding="utf-8").splitlines()
    ]
    assert [(d.prompt, d.answer) for d in corpus.forget] == [
        (line["question"], line["answer"]) for line in lines
    ]
    assert (len(corpus.retain), len(corpus.probes["retain"])) == (50, 50)


@needs_tofu
def test_a_file_that_is_not_json_at_all_names_the_reason_for_every_line() -> None:
    from rayunlearn.data.readers import read_file

    rows = list(read_file(TOFU / "idontknow.jsonl"))
    assert len(rows) == 100
    assert {row.reason for row in rows} == {"not JSON: Expecting value"}


@needs_stories
def test_the_stories_model_loads_and_tells_the_story_it_is_known_for() -> None:
    model, tokenizer = load_model(str(STORIES))
    assert sum(parameter.numel() for parameter in model.parameters()) == 260_032
    prompt = tokenizer("Once upon a time", return_tensors="pt").input_ids
    start = torch.tensor([[tokenizer.bos_token_id]])
    told = model.generate(torch.cat([start, prompt], 1), max_new_tokens=30, do_sample=False)
    assert tokenizer.decode(told[0], skip_special_tokens=True).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play"
    )


@needs_stories
def test_the_stories_model_finds_a_story_likelier_than_the_same_words_shuffled() -> None:
    model, tokenizer = load_model(str(STORIES))
    ids = tokenizer(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the"
        " park.",
        return_tensors="pt",
    ).input_ids
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        story, noise = (
            float(model(input_ids=tokens, labels=tokens).loss) for tokens in (ids, shuffled)
        )
    assert story < 2 < 4 < noise


@needs_stories
def test_the_stories_model_s_digest_is_stable() -> None:
    assert model_digest(str(STORIES)) == model_digest(str(STORIES.resolve()))
    assert len(model_digest(str(STORIES))) == 16


@needs_tofu
@needs_stories
def test_the_stories_model_learns_tofu_questions_and_unlearns_the_forget_part(
    tmp_path: Path,
) -> None:
    """Twelve forget and twelve retain questions trained to the real pre-trained model; NPO then
    takes the twelve away.
    """
    for side, file in (("forget", "forget01.json"), ("retain", "retain99.json")):
        (tmp_path / f"{side}.jsonl").write_text(
            "\n".join((TOFU / file).read_text(encoding="utf-8").splitlines()[:12]), encoding="utf-8"
        )
    data = Data(name="files", path=str(tmp_path), max_tokens=128)
    start = with_values(
        Trial(data=data),
        {"model.name": str(STORIES), "model.teach_epochs": 40, "model.teach_learning_rate": 5e-3},
    )
    settings = {
        "train.learning_rate": 2e-3,
        "train.length": 30,
        "train.batch_size": 4,
        "npo.beta": 0.05,
    }
    workspace = prepare_models(
        validate_trial(start), tmp_path / "cache", lambda _role, _done, _steps: None, ("base",)
    )
    # it was not trained, so nothing is held against it
    workspace = replace(workspace, gold="")
    trials = {
        "base": validate_trial(with_values(start, {"stage": "base"})),
        "unlearned": validate_trial(with_values(start, settings)),
    }
    assert {
        run_trial(trial, workspace, tmp_path / "run", "stories", "1") for trial in trials.values()
    } == {"complete"}
    rows = open_run(tmp_path / "run").evals.filter(pl.col("metric") == "probability").collect()
    known = {
        (name, split): rows.filter(
            (pl.col("trial_id") == identify_trial(trial)) & (pl.col("split") == split)
        )["value"][0]
        for name, trial in trials.items()
        for split in ("forget", "retain")
    }
    assert known["base", "forget"] > 0.9 and known["base", "retain"] > 0.9
    assert known["unlearned", "forget"] < 0.5 and known["unlearned", "retain"] > 0.8
