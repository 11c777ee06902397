"""What a run is expected to cost, from the trials that it has finished."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from rayunlearn.attribution.leave_one_out import token_units, word_units
from rayunlearn.config import Trial, Value, flatten, with_values
from rayunlearn.data.tokenize import Encoded, encode_documents, encode_pair
from rayunlearn.models.folder import read_tokenizer
from rayunlearn.planning.cost import (
    LoadedShape,
    WorkloadSize,
    estimate,
    explained_tokens,
    flop_per_second,
    flops_of_loaded,
    flops_of_measuring,
    size_of,
)
from rayunlearn.planning.planner import Agenda
from rayunlearn.schema import SECONDS_BY_PART, column_names
from rayunlearn.storage.run import write_trial
from rayunlearn.trial.identity import corpus_of
from rayunlearn.trial.probes import probes_of_trial

LONG = "Of all that is the case here, answer this question: {prompt} The answer is:"
PARTS = (("q_proj", 6.0), ("mlp.down_proj", 4.0))
NOTHING_LEFT = Agenda(rows=(), ready=(), waiting=0)


def test_every_column_of_seconds_is_a_part_of_a_trial() -> None:
    columns = [name for name in column_names("trials") if name.startswith("seconds_")]
    assert sorted(columns) == sorted(SECONDS_BY_PART)


def test_a_trial_takes_the_time_of_all_its_parts(tmp_path: Path) -> None:
    """Seven parts of 1 s in one trial, the other has only trained, for 2 s: the mean is 4.5 s."""
    for trial_id, seconds in (
        ("a" * 8, dict.fromkeys(SECONDS_BY_PART, 1.0)),
        ("b" * 8, {"seconds_train": 2.0}),
    ):
        row = {"status": "complete", "peak_memory_bytes": 10, **seconds}
        write_trial(
            tmp_path, trial_id, {"trials": [{"trial_id": trial_id, **row}]}, flatten(Trial())
        )
    found = estimate(tmp_path, NOTHING_LEFT, size_of=lambda _trial: pytest.fail("not asked"))
    assert found.seconds == pytest.approx((7 + 2) / 2)


# four blocks of 10 parameters, 4 of them in down_proj; a head of 100; 5 documents of 6 tokens, 2 of
# them labels
SHAPE = LoadedShape(
    blocks=(10.0,) * 4,
    head=100.0,
    tensors=(
        ("embed.weight", 100.0),
        *((f"layers.{n}.{name}.weight", size) for n in range(4) for name, size in PARTS),
    ),
)
SIZE = WorkloadSize(
    parameters=140, tokens_per_document=6, n_forget=5, labels_per_document=2, shape=SHAPE
)
# 3 documents a side; two operations per parameter and token that run, two that a gradient passes
# through, two that have one of their own; four per parameter of the head and label
SIDES: dict[str, tuple[dict[str, Value], float]] = {
    "rmu": (
        {
            "method.forget": "rmu",
            "method.retain": "activation",
            "method.layer": 2,
            "train.layers": "1,2",
            "train.parameters": "down_proj",
        },
        2 * 3 * 6 * (4 * 20 + 2 * 8),
    ),
    "npo": ({"method.retain": "nll"}, 2 * 3 * (6 * (4 * 40 + 2 * (40 + 100)) + 4 * 100 * 2)),
    "upper": (
        {"method.retain": "none", "train.layers": "3", "train.adapter": "lora"},
        3 * (6 * 4 * 10 + 4 * 100 * 2),
    ),
}


def test_the_speed_of_one_thread_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a thread sees nothing of what others do for it."""
    n_threads: list[int] = []
    clock = time.thread_time

    def noting() -> float:
        n_threads.extend(
            pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"
        )
        return clock()

    monkeypatch.setattr(time, "thread_time", noting)
    flop_per_second.cache_clear()
    # tests have one thread of their own accord
    with threadpool_limits(2, user_api="blas"):
        noting()
        assert set(n_threads) == {2}
        n_threads.clear()
        assert 1e8 < flop_per_second() < 1e13
    assert set(n_threads) == {1}


@pytest.mark.parametrize("case", SIDES)
def test_only_what_runs_and_what_is_trained_is_counted(case: str) -> None:
    values, flops = SIDES[case]
    shown: dict[str, Value] = {"train.length": 3.0, "train.unit": "presentations"}
    trial = with_values(Trial(), shown | values)
    assert flops_of_loaded(trial, SHAPE, SIZE, measured=7.0) == flops + 7


def test_measuring_counts_what_is_asked_at_the_end_and_at_each_look(untaught_models: Path) -> None:
    """Of `probability` the answers of all splits once, and, as there is a holdout, of the forget
    documents; at three looks in 12 steps, after 5, 10 and 12, at most 64 of forget and of retain
    again. The shape has 40 parameters in blocks and 100 in its head.
    """
    folder = untaught_models / "base"
    settings: dict[str, Value] = {"measure.metrics": "probability", "train.length": 12.0}
    settings |= {"stop.check_every": 5, "model.name": str(folder), "model.teach": False}
    trial = with_values(Trial(), settings)

    def answers(split: str, at_most: int) -> list[Encoded]:
        return encode_documents(
            splits[split][:at_most],
            read_tokenizer(folder),
            trial.data.template,
            trial.data.max_tokens,
        )

    corpus = corpus_of(trial.data, trial.model)
    splits = corpus.probes | {"members": corpus.forget}
    passed = [s for split in splits for s in answers(split, len(splits[split]))]
    passed += 3 * [s for split in ("forget", "retain") for s in answers(split, 64)]
    assert flops_of_measuring(trial, SHAPE, SIZE) == pytest.approx(flops_of(passed))
    # nine mixtures of retain and forget, and everything once more at the one that was found
    calibrated = with_values(trial, {"calibrate.tau": 0.95, "calibrate.beside": 0.0})
    everything = [s for split in splits for s in answers(split, len(splits[split]))]
    mixtures = 9 * [s for split in ("forget", "retain") for s in answers(split, 10**6)]
    more = flops_of(passed + mixtures + everything)
    assert flops_of_measuring(calibrated, SHAPE, SIZE) == pytest.approx(more)
    control = with_values(calibrated, {"method.forget": "none"})
    assert flops_of_measuring(control, SHAPE, SIZE) == pytest.approx(flops_of(passed))


def test_what_texts_begin_with_alike_is_counted_once_a_pass(
    untaught_models: Path, tmp_path: Path
) -> None:
    """Nine words before every conversation; of eight texts in a pass seven do not read them."""
    folder = shutil.copytree(untaught_models / "base", tmp_path / "base")
    turns = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    (folder / "chat_template.jinja").write_text(9 * "of " + turns, encoding="utf-8")
    settings: dict[str, Value] = {"model.name": str(folder), "model.teach": False}
    settings |= {"measure.metrics": "probability", "train.length": 12.0, "data.template": "chat"}
    trial = with_values(Trial(), settings)
    corpus, tokenizer = corpus_of(trial.data, trial.model), read_tokenizer(folder)
    # documents without a prompt are in no template
    assert size_of(trial).shared_per_document == 0
    # at the end, and at one look
    asked = [d for split in corpus.probes for d in corpus.probes[split]]
    asked += [d for split in ("forget", "retain") for d in corpus.probes[split][:64]]
    passed = encode_documents((*asked, *corpus.forget), tokenizer, "chat", trial.data.max_tokens)
    n_opened = sum(bool(document.prompt) for document in asked)
    expected = flops_of(passed) - 2 * 40 * n_opened * 9 * 7 / 8
    assert flops_of_measuring(trial, SHAPE, SIZE) == pytest.approx(expected, rel=1e-3)
    # what the options of a question begin with is read by the first of them alone
    options = with_values(trial, {"measure.metrics": "multiple_choice", "data.template": LONG})
    probes = probes_of_trial(options, corpus, tokenizer)
    tokens = sum(
        len(o.ids) - (o.start if n else 0) for p in probes for n, o in enumerate(p.options)
    )
    n_labels = sum(len(o.ids) - o.start for p in probes for o in p.options)
    looks = flops_of_measuring(
        replace(options, measure=replace(options.measure, metrics="probability")), SHAPE, SIZE
    ) - flops_of([p.answer for p in probes])
    asked_at_the_end = flops_of_measuring(options, SHAPE, SIZE) - looks
    assert asked_at_the_end == pytest.approx(2 * (40 * tokens + 100 * n_labels), rel=1e-3)
    # four of six tokens are read once; heads are no matter of tokens
    sizes = (SIZE, replace(SIZE, shared_per_document=4), replace(SIZE, tokens_per_document=0))
    whole, shared, heads = (flops_of_loaded(trial, SHAPE, size, 0.0) for size in sizes)
    assert shared - heads == pytest.approx((whole - heads) / 3)


def test_explaining_counts_every_unit_left_out_and_every_form_of_emphasis(
    untaught_models: Path,
) -> None:
    """Of one question of each split: the units that attribution itself leaves out, one more pass of
    the whole question for each kind of unit, and two kinds of words in four forms, each asked as an
    answer and four options.
    """
    folder = untaught_models / "base"
    trial = with_values(
        Trial(), {"model.name": str(folder), "model.teach": False, "explain.documents": 1}
    )
    corpus, tokenizer = corpus_of(trial.data, trial.model), read_tokenizer(folder)
    template = trial.data.template
    left_out = emphasised = 0
    for part in corpus.probes.values():
        document = min(part, key=lambda d: d.doc_id)
        # the true option is the answer
        texts = (document.answer, *((document.answer, *document.wrong) if document.wrong else ()))
        asked = [
            encode_pair("x", document.prompt, text, tokenizer, template, trial.data.max_tokens)
            for text in texts
        ]
        units = [f(asked[0], document, tokenizer, template) for f in (token_units, word_units)]
        left_out += sum(1 + len(unit.texts) for unit in units) * len(asked[0].ids)
        # the second and later options do not read the question again
        again = sum(s.start for s in asked[2:])
        emphasised += 2 * 4 * (sum(len(s.ids) for s in asked) - again)
    tokens, labels = explained_tokens(trial.data, trial.model, trial.measure, trial.explain)
    assert tokens == pytest.approx(left_out + emphasised, rel=0.1)
    assert 0 < labels < tokens
    plain = with_values(trial, {"explain.documents": 0})
    more = flops_of_measuring(trial, SHAPE, SIZE) - flops_of_measuring(plain, SHAPE, SIZE)
    assert more == pytest.approx(2 * (40 * tokens + 100 * labels))


def flops_of(sequences: list[Encoded]) -> float:
    """Two operations per parameter: of the blocks for every token, of the head for labels."""
    return sum(2 * (40 * len(s.ids) + 100 * (len(s.ids) - s.start)) for s in sequences)
