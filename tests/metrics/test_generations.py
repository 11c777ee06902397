"""What a model wrote, as rows: each text once, for every metric that reads it."""

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayunlearn.data.documents import Document
from rayunlearn.metrics.evaluate import Measured, chosen_metrics, encode_probes, measure
from rayunlearn.metrics.forward_passes import EvaluationTask, GenerationSettings
from rayunlearn.metrics.generations import TEXT_INPUTS
from rayunlearn.metrics.table import INPUTS, METRICS
from rayunlearn.metrics.text import rouge_l_recall
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.trial.evaluate import first_documents

DOCUMENTS = {
    "forget": [
        Document(prompt="What colour does Zor glow?", answer="amber light", wrong=("jade light",)),
        Document(answer="Zor glows amber at night and feeds on moss"),
    ],
    "retain": [Document(prompt="Where does Kex grow?", answer="caves", wrong=("dunes",))],
}
LETTER_WORDS = "Answer: A Answer: B A. B. C. D."


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    documents = [d for part in DOCUMENTS.values() for d in part]
    texts = [text for d in documents for text in (f"{d.prompt} {d.answer} {d.wrong}", d.answer)]
    return build_tokenizer([*texts, LETTER_WORDS])


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return build_model("tiny", len(tokenizer), 0).eval()


def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: str) -> Measured:
    task = EvaluationTask(
        model=model,
        probes=encode_probes(DOCUMENTS, tokenizer, "{prompt}", 64),
        tokenizer=tokenizer,
        writing=GenerationSettings(max_new_tokens=3, samples=2),
    )
    return measure(task, chosen_metrics(names), {"leak_at_k": {"k": 2}})


def test_every_text_is_there_once_with_what_should_stand_there_and_who_reads_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    names = "probability,rouge_l_recall,repetition,verbatim_memorization,leak_at_k,letter_written"
    done = measured(model, tokenizer, names)
    places = [(r["split"], r["input"], r["number"]) for r in done.generations]
    question = [("generated", 0), ("continuation", 0), ("samples", 0), ("samples", 1)]
    letter = [("letter_text", 0)]
    assert places == [
        *(("forget", *place) for place in [*question, *letter]),
        # a text without a question has no letters
        *(("forget", *place) for place in question),
        *(("retain", *place) for place in [*question, *letter]),
    ]
    first, text = done.generations[0], done.generations[5]
    assert first["metrics"] == "rouge_l_recall,repetition"
    assert (first["prompt"], first["reference"]) == ("What colour does Zor glow?", "amber light")
    assert first["verdict"] is None
    # the halves of a text: what stands before is the prompt, the rest the reference
    whole = f"{text['prompt']} {text['reference']}"
    assert whole == DOCUMENTS["forget"][1].answer
    letters = [r for r in done.generations if r["input"] == "letter_text"]
    assert [r["reference"] in "AB" for r in letters] == [True, True]
    assert all("Answer:" in r["prompt"] and r["metrics"] == "letter_written" for r in letters)
    # what is kept is what was scored
    for row in done.generations:
        if row["input"] == "generated":
            (value,) = [
                e["value"]
                for e in done.examples
                if (e["doc_id"], e["metric"]) == (row["doc_id"], "rouge_l_recall")
            ]
            assert value == rouge_l_recall(row["generated"], row["reference"])


def test_without_a_metric_of_texts_there_are_none(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert measured(model, tokenizer, "cheap").generations == []


def test_every_input_that_a_model_writes_is_kept() -> None:
    """Another pass that generates text must be in the table too."""
    written = {n for n, i in INPUTS.items() if i.source in ("greedy", "samples", "written letters")}
    assert written == set(TEXT_INPUTS)
    read = {name for row in METRICS.values() for name in row.inputs}
    assert set(TEXT_INPUTS) <= read


def test_so_many_documents_of_each_split_are_kept_in_the_order_they_had() -> None:
    rows = [
        {"split": split, "doc_id": doc, "number": number}
        for split, docs in (("forget", "bca"), ("retain", "d"))
        for doc in docs
        for number in (0, 1)
    ]
    kept = first_documents(rows, 2)
    assert [r["doc_id"] for r in kept] == ["b", "b", "a", "a", "d", "d"]
    assert first_documents(rows, 0) == [] and first_documents(rows, 9) == rows
