"""A domain of multiple-choice questions: which subjects a model answers above chance."""

from pathlib import Path

import pytest
import torch

from rayunlearn.config import Data, Model, Trial
from rayunlearn.data.benchmarks import load_benchmark
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.errors import UserError
from rayunlearn.models.load import save_model
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.trial import domain
from rayunlearn.trial.domain import choose, keep_above_chance, subject_choices
from rayunlearn.trial.identity import corpus_of

SUBJECTS = ("anatomy", "virology", "marketing", "sociology", "prehistory")
TEMPLATE = "Question: {prompt}\nAnswer:"


def question(subject: str, n: int) -> Document:
    words = ("one", "two", "three", "four")
    answer, *wrong = (*words[n % 4 :], *words[: n % 4])
    return Document(
        prompt=f"What is {subject} {n}?", answer=answer, wrong=tuple(wrong), topic=subject
    )


def mmlu_folder(root: Path, n: int = 12) -> Path:
    """Questions of five subjects in the authors' layout."""
    (root / "test").mkdir(parents=True)
    for subject in SUBJECTS:
        lines = [f"What is {subject} {i}?,wrong {i},right {i},odd {i},bad {i},B" for i in range(n)]
        (root / "test" / f"{subject}_test.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


def test_every_other_question_of_the_forget_subjects_is_near(tmp_path: Path) -> None:
    options = {"strict": False, "retain": "marketing", "untouched": "history", "questions": 8}
    loaded = load_benchmark("mmlu-domain", mmlu_folder(tmp_path), options=options)
    topics = {split: {d.topic for d in part} for split, part in loaded.probes.items()}
    assert topics["forget"] == topics["near"] == {"anatomy", "virology"}
    assert topics["retain"] == {"marketing"} and topics["untouched"] == {"prehistory"}
    sizes = {split: len(part) for split, part in loaded.probes.items()}
    assert sizes == {"forget": 8, "near": 8, "retain": 8, "untouched": 8}
    assert not {d.doc_id for d in loaded.forget} & {d.doc_id for d in loaded.probes["near"]}
    assert loaded.forget[0].answer == "right 0" and len(loaded.forget[0].wrong) == 3


def test_a_misspelt_subject_and_one_that_is_used_up_are_told(tmp_path: Path) -> None:
    folder = mmlu_folder(tmp_path)
    with pytest.raises(UserError, match=r"group of mmlu-domain 'anatomi'; did you mean 'anatomy'"):
        load_benchmark("mmlu-domain", folder, options={"forget": "anatomi", "strict": False})
    options = {"strict": False, "forget": "anatomy", "retain": "anatomy"}
    with pytest.raises(UserError, match="retain must name subjects that no earlier set has"):
        load_benchmark("mmlu-domain", folder, options=options)


def test_a_subject_stays_where_its_whole_interval_is_above_chance() -> None:
    """12 of 20 right: Wilson's interval from .39, above a quarter; 8 of 20: from .22, not above."""
    questions = [question(s, n) for s in ("anatomy", "virology", "marketing") for n in range(20)]
    n_right = {"anatomy": 12, "virology": 8, "marketing": 20}
    chosen = {d.doc_id: int(d.prompt[:-1].split()[-1]) < n_right[d.topic] for d in questions}
    choices = subject_choices(questions, chosen)
    above = {subject for subject, choice in choices.items() if choice.is_above_chance}
    assert above == {"anatomy", "marketing"} and choices["virology"].chance == 0.25
    assert 0.36 < (choices["anatomy"].right.low or 0) < 0.40
    forget, retain = tuple(questions[:40]), tuple(questions[40:])
    corpus = Corpus(
        name="domain",
        forget=forget,
        retain=retain,
        probes={"forget": forget, "retain": retain},
        extra_training={},
    )
    kept = keep_above_chance(corpus, choices)
    assert {d.topic for d in kept.forget} == {"anatomy"} and len(kept.forget) == 20
    assert len(kept.rejected) == 20 and kept.rejected[0].source == "virology"
    assert any(note.startswith("virology: right 0.40 [0.2") for note in kept.notes)
    with pytest.raises(
        UserError, match="must be above chance in a subject of forget: anatomy: right 0.40"
    ):
        keep_above_chance(corpus, choices | {"anatomy": choices["virology"]})


def test_a_choice_is_the_likeliest_whole_option(tmp_path: Path) -> None:
    """Held against one plain forward pass for each option."""
    questions = [question("anatomy", n) for n in range(6)]
    texts = [
        f"{d.prompt} {option} {TEMPLATE}" for d in questions for option in (d.answer, *d.wrong)
    ]
    tokenizer = build_tokenizer(texts)
    model = build_model("tiny", len(tokenizer), seed=1)
    expected = []
    for d in questions:
        scores = []
        for option in (d.answer, *d.wrong):
            before = tokenizer.encode(TEMPLATE.replace("{prompt}", d.prompt))
            whole = tokenizer.encode(f"{TEMPLATE.replace('{prompt}', d.prompt)} {option}")
            ids = [tokenizer.bos_token_id, *whole, tokenizer.eos_token_id]
            with torch.no_grad():
                log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            first = 1 + len(before)
            scores.append(sum(float(log_p[i - 1, ids[i]]) for i in range(first, len(ids))))
        expected.append(scores[0] == max(scores))
    assert choose(model, tokenizer, questions, Data()) == expected and len(set(expected)) == 2


def test_a_trial_on_a_domain_asks_its_model_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = mmlu_folder(tmp_path / "mmlu")
    tokenizer = build_tokenizer([folder.joinpath("test/anatomy_test.csv").read_text(), TEMPLATE])
    model = save_model(build_model("tiny", len(tokenizer), seed=1), tokenizer, tmp_path / "model")
    options = "strict=false,forget=anatomy,retain=marketing,untouched="
    trial = Trial(
        data=Data(name="mmlu-domain", path=str(folder), options=options),
        model=Model(name=str(model), teach=False),
    )
    n_asked = []

    def all_right(
        _model: object, _tokenizer: object, part: list[Document], _: Data, _done: object
    ) -> list[bool]:
        n_asked.append(len(part))
        return [document.topic != "virology" for document in part]

    monkeypatch.setattr(domain, "choose", all_right)
    for limit in (100, 5):
        data = Data(name="mmlu-domain", path=str(folder), options=options, limit_retain=limit)
        corpus = corpus_of(data, trial.model)
        assert len(corpus.forget) == 6 and len(corpus.retain) == min(limit, 12)
    assert n_asked == [12, 12]
