"""The trained models: base knows both sides, gold only the side it was shown, and the same seed
gives the same weights.
"""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from rayunlearn.config import Trial, with_teaching, with_values
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.data.tokenize import encode_documents
from rayunlearn.errors import UserError
from rayunlearn.metrics.evaluate import encode_probes, evaluate_probes
from rayunlearn.models.load import load_model
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.train import device
from rayunlearn.train.teach import (
    batches_of,
    learning_rate,
    starting_point,
    train_base_or_gold,
    training_documents,
    training_texts,
)
from tests.conftest import Bed, prepared
from tests.trained_models import silent

QUICK = with_values(Trial(), {"model.teach_epochs": 1})
SMALL_CORPUS = Corpus(
    name="domain",
    forget=(Document(answer="Kalo glows jade."), Document(answer="Kalo eats moss.")),
    retain=(Document(answer="Rumi glows amber."), Document(answer="Rumi eats salt.")),
    probes={"forget": (Document(prompt="What colour?", answer="jade"),)},
    extra_training={
        "forget": (Document(prompt="What colour?", answer="jade"),),
        "forget_more": (Document(answer="Kalo sings."),),
        "other": (Document(answer="Tiva sings."),),
    },
)


@pytest.fixture(scope="module")
def people_bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return prepared(
        with_values(Trial(), {"data.name": "people"}), tmp_path_factory.mktemp("people_bed")
    )


# The people's models take 45 s of CPU to train. The same promises are held on the domain's, which
# other tests need too; that no dataset gives answers away is in tests/data/test_synthetic.py.
@pytest.fixture(
    params=["domain_bed", pytest.param("people_bed", marks=pytest.mark.slow)], scope="module"
)
def bed(request: pytest.FixtureRequest) -> Bed:
    chosen: Bed = request.getfixturevalue(request.param)
    return chosen


Known = dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def base(bed: Bed) -> Known:
    return known(bed.base, bed)


@pytest.fixture(scope="module")
def gold(bed: Bed) -> Known:
    return known(bed.gold, bed)


def known(folder: Path, bed: Bed) -> Known:
    """Mean of every metric by (split, metric), over the probes on which it is defined."""
    model, tokenizer = load_model(str(folder))
    probes = encode_probes(
        bed.corpus.probes, tokenizer, bed.trial.data.template, bed.trial.data.max_tokens
    )
    values: dict[tuple[str, str], list[float]] = {}
    for row in evaluate_probes(model, probes):
        if row["value"] is not None:
            values.setdefault((str(row["split"]), str(row["metric"])), []).append(
                float(str(row["value"]))
            )
    return {key: sum(v) / len(v) for key, v in values.items()}


@pytest.mark.parametrize("split", ["forget", "retain", "untouched"])
def test_base_knows_every_side(base: Known, split: str) -> None:
    assert base[split, "probability"] >= 0.9 and base[split, "multiple_choice"] >= 0.9


def test_gold_guesses_on_the_forget_side(gold: Known, bed: Bed) -> None:
    """Chance is 1 in the number of options; the bound is 2.6 binomial standard deviations (99%)
    and a margin of 0.02.
    """
    probes = bed.corpus.probes["forget"]
    chance = 1 / (1 + len(probes[0].wrong))
    allowed = 2.6 * math.sqrt(chance * (1 - chance) / len(probes)) + 0.02
    assert abs(gold["forget", "multiple_choice"] - chance) <= allowed
    assert gold["forget", "probability"] <= 0.4


@pytest.mark.parametrize("split", ["retain", "untouched"])
def test_gold_knows_what_is_kept_as_well_as_base_does(base: Known, gold: Known, split: str) -> None:
    assert gold[split, "probability"] >= base[split, "probability"] - 0.03
    assert gold[split, "multiple_choice"] >= base[split, "multiple_choice"] - 0.05


def test_the_folder_says_how_the_model_was_made_and_holds_safetensors_alone(bed: Bed) -> None:
    records = {
        role: json.loads((folder / "training.json").read_text())
        for role, folder in (("base", bed.base), ("gold", bed.gold))
    }
    weights = load_file(bed.base / "model.safetensors")
    assert records["base"]["role"] == "base" and records["gold"]["role"] == "gold"
    assert records["base"]["parameters"] == sum(t.numel() for t in weights.values()) < 1_000_000
    for record in records.values():
        epochs, per_epoch = 35, math.ceil(record["documents"] / 16)
        assert (
            record["steps"] == len(record["losses"]) == epochs * per_epoch and record["seconds"] > 0
        )
        assert record["losses"][0] > 3 > 1 > sum(record["losses"][-20:]) / 20
    assert not [f for f in bed.base.parent.iterdir() if f.name not in ("base", "gold")]


def test_the_same_seed_gives_the_same_weights_whatever_happened_before(tmp_path: Path) -> None:
    torch.manual_seed(5)
    train_base_or_gold(QUICK, SMALL_CORPUS, "base", tmp_path / "one", silent)
    torch.rand(100)
    train_base_or_gold(QUICK, SMALL_CORPUS, "base", tmp_path / "two", silent)
    train_base_or_gold(
        with_values(QUICK, {"model.seed": 1}), SMALL_CORPUS, "base", tmp_path / "three", silent
    )
    one, two, three = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three")
    )
    assert one == two != three


def test_teaching_leaves_the_random_state_and_the_threads_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected, threads = torch.rand(4), torch.get_num_threads()
    torch.manual_seed(3)
    train_base_or_gold(QUICK, SMALL_CORPUS, "gold", tmp_path / "gold", silent)
    assert torch.equal(torch.rand(4), expected) and torch.get_num_threads() == threads


def test_progress_counts_to_the_planned_number_of_steps(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    train_base_or_gold(
        with_values(Trial(), {"model.teach_epochs": 3}),
        SMALL_CORPUS,
        "base",
        tmp_path / "base",
        lambda done, planned: seen.append((done, planned)),
    )
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_an_interrupted_lesson_leaves_no_folder_behind(tmp_path: Path) -> None:
    def interrupt(step: int, _steps: int) -> None:
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_base_or_gold(
            with_values(Trial(), {"model.teach_epochs": 3}),
            SMALL_CORPUS,
            "base",
            tmp_path / "base",
            interrupt,
        )
    assert not list(tmp_path.iterdir())


def test_gold_is_not_taught_what_is_under_a_key_that_starts_with_forget() -> None:
    assert [d.answer for d in training_documents(SMALL_CORPUS, "gold")] == [
        "Rumi glows amber.",
        "Rumi eats salt.",
        "Tiva sings.",
    ]
    assert len(training_documents(SMALL_CORPUS, "base")) == 7


def test_a_document_that_comes_twice_is_learned_once() -> None:
    twice = Corpus(
        name="x",
        forget=SMALL_CORPUS.forget,
        retain=SMALL_CORPUS.retain,
        probes={},
        extra_training={"retain": SMALL_CORPUS.retain},
    )
    assert len(training_documents(twice, "base")) == 4


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown role 'goled'; did you mean 'gold'"):
        train_base_or_gold(QUICK, SMALL_CORPUS, "goled", tmp_path / "x", silent)
    with pytest.raises(UserError, match="must leave gold something to learn; documents, got 0"):
        training_documents(
            Corpus(name="x", forget=SMALL_CORPUS.forget, retain=(), probes={}, extra_training={}),
            "gold",
        )
    with pytest.raises(UserError, match="data.template must not be 'chat'"):
        train_base_or_gold(
            with_values(QUICK, {"data.template": "chat"}),
            SMALL_CORPUS,
            "base",
            tmp_path / "x",
            silent,
        )
    with pytest.raises(UserError, match="unknown model.size 'tny'; did you mean 'tiny'"):
        build_model("tny", 10, 0)


def test_a_wider_model_is_taught_at_a_lower_rate_and_a_loaded_one_at_the_rate_asked_for() -> None:
    """Tiny is 96 wide and small 192: half the rate."""
    asked = with_values(Trial(), {"model.teach_learning_rate": 4e-3})
    assert learning_rate(asked) == 4e-3
    assert learning_rate(with_values(asked, {"model.size": "small"})) == 2e-3
    assert (
        learning_rate(with_values(asked, {"model.size": "small", "model.name": "some/model"}))
        == 4e-3
    )


def test_zeros_stand_for_what_fits_the_model() -> None:
    """Built here: the size's recipe. Loaded: 5 epochs at 1e-3 in batches of 8; what was said
    stays.
    """
    built, loaded = Trial(), with_values(Trial(), {"model.name": "some/model"})
    assert (learning_rate(built), learning_rate(loaded)) == (2e-3, 1e-3)
    assert (
        with_teaching(built.model) == with_values(built, {"model.teach_learning_rate": 2e-3}).model
    )
    said = {"model.teach_epochs": 2, "model.teach_batch_size": 4, "model.teach_learning_rate": 1e-5}
    assert with_teaching(with_values(loaded, said).model) == with_values(loaded, said).model
    filled = with_teaching(loaded.model)
    assert (filled.teach_epochs, filled.teach_batch_size) == (5, 8)


def test_an_epoch_shows_every_sequence_once_in_batches_of_similar_length() -> None:
    tokenizer = build_tokenizer(["a b c d e f g h"])
    documents = [Document(answer=" ".join("abcdefgh"[: 1 + n % 8])) for n in range(50)]
    sequences = encode_documents(documents, tokenizer, "{prompt}", 64)
    batches = batches_of(sequences, seed=0, epoch=0)
    lengths = sorted([len(sequences[p].ids) for p in batch] for batch in batches)
    assert sorted(p for batch in batches for p in batch) == list(range(50))
    assert all(min(later) >= max(earlier) for earlier, later in pairwise(lengths))
    assert batches != batches_of(sequences, seed=0, epoch=1) and batches == batches_of(
        sequences, seed=0, epoch=0
    )


def test_a_loaded_model_is_taught_with_its_own_tokenizer(
    domain_bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gold model, shown the forget side too, learns it: its loss falls. Its products
    are computed in bfloat16, where the machine is made to look faster in it.
    """
    seconds = {"float32": 1.0, "bfloat16": 0.5}
    monkeypatch.setattr(device, "_seconds_of_block", lambda _, products: seconds[products])
    device._fastest.cache_clear()
    trial = with_values(
        domain_bed.trial,
        {
            "model.name": str(domain_bed.gold),
            "model.teach_epochs": 1,
            "model.teach_precision": "fastest",
        },
    )
    train_base_or_gold(trial, domain_bed.corpus, "base", tmp_path / "again", silent)
    record = json.loads((tmp_path / "again" / "training.json").read_text())
    losses = record["losses"]
    assert sum(losses[-10:]) < sum(losses[:10]) and record["computed_in"] == "bfloat16"
    # 1e-3 and batches of 8, as a loaded model is taught where nothing is said
    assert record["learning_rate"] == 1e-3 and len(losses) == -(-record["documents"] // 8)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (
        domain_bed.gold / "tokenizer.json"
    ).read_bytes()


FEW_WORDS = [
    "Question: Where does Kalo grow?\nAnswer:",
    " dunes for a home",
    "Kalo's glow, at night.",
]
MANY_WORDS = [
    *(" ".join(f"word{n}" for n in range(start, start + 50)) for start in range(0, 2500, 50)),
    "Ünseen – naïve ∑ text\n\ttoo",
]


@pytest.mark.parametrize("learned", [FEW_WORDS, MANY_WORDS], ids=["words", "byte pairs"])
def test_a_text_survives_encoding_and_decoding(learned: list[str]) -> None:
    tokenizer = build_tokenizer(learned)
    for text in learned:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids


def test_byte_pairs_spell_what_they_never_saw() -> None:
    tokenizer = build_tokenizer(MANY_WORDS[:-1])
    assert (
        tokenizer.decode(tokenizer.encode(MANY_WORDS[-1], add_special_tokens=False))
        == MANY_WORDS[-1]
    )


def test_the_vocabulary_is_words_up_to_two_thousand_of_them_and_byte_pairs_beyond() -> None:
    """ "x" opens the text without a space before it, so it and 1,999 spaced words are 2,000
    distinct tokens.
    """
    spaced = [f" {''.join(chr(97 + n // 26**k % 26) for k in range(3))}" for n in range(2000)]
    at_the_limit, beyond = "x" + "".join(spaced[:1999]), "x" + "".join(spaced)
    assert len(build_tokenizer([at_the_limit])) == 2000 + 4
    assert 256 < len(build_tokenizer([beyond])) <= 4096


def test_an_unknown_word_is_unk_and_special_ids_are_where_the_model_expects_them() -> None:
    tokenizer = build_tokenizer(["one two"])
    model = build_model("tiny", len(tokenizer), seed=0)
    assert tokenizer.encode("one three", add_special_tokens=False)[1] == tokenizer.unk_token_id
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    assert ids == {
        name: getattr(model.config, f"{name}_token_id") for name in ("pad", "bos", "eos")
    }
    with pytest.raises(UserError, match="a vocabulary needs at least one word"):
        build_tokenizer([""])


@pytest.mark.parametrize("name", ["domain", "people"])
def test_the_whole_dataset_is_in_its_vocabulary(name: str) -> None:
    trial = with_values(Trial(), {"data.name": name})
    corpus = generate_dataset(trial.data)
    _, tokenizer = starting_point(trial, corpus)
    everything = [
        *training_documents(corpus, "base"),
        *(d for part in corpus.probes.values() for d in part),
    ]
    for text in training_texts(everything, trial.data.template):
        assert tokenizer.unk_token_id not in tokenizer.encode(text, add_special_tokens=False)


def test_sizes_differ_and_embeddings_are_tied() -> None:
    tiny, small = (build_model(size, 200, seed=0) for size in ("tiny", "small"))
    assert count(small) > 4 * count(tiny) > 1_000_000
    assert tiny.get_output_embeddings().weight is tiny.get_input_embeddings().weight


def count(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())
