"""A small corpus that passes read in a dozen pieces, and what they must write of it: for the tests
of corpus/ and of the same passes on Ray.
"""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from rayunlearn.config import digest
from rayunlearn.corpus.engine import Engine
from rayunlearn.corpus.extract_keywords import KeywordRequest, extractor_arguments
from rayunlearn.corpus.score_documents import ScoreRequest, score_corpus
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import encode_documents
from rayunlearn.keywords.extract import KeywordInputs, extract
from rayunlearn.keywords.rows import keyword_rows
from rayunlearn.models.document_features import document_features
from rayunlearn.models.load import load_model, save_model
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.storage.parquet import frame_of

PLACES = ("moss", "amber hall", "old kiln", "grey weir")
TEXTS = [
    f"The {PLACES[at % 4]} of year{at} holds {PLACES[at % 3]} and low-cost glass/stone, item"
    f" {at % 7}."
    for at in range(120)
]
RETAIN = [f"The year{at} was quiet. Glass is made of sand, item {at % 5}." for at in range(60)]
# bytes: a dozen pieces
PIECE = 700


def write_corpus(folder: Path) -> Path:
    """Documents, two copies of the third one (in other pieces), an empty row and a row that is no
    JSON; beside them a retain set.
    """
    file = folder / "forget.jsonl"
    rows = [{"text": t} for t in (*TEXTS[:60], TEXTS[2], *TEXTS[60:], TEXTS[2], "")]
    file.write_text("\n".join([*map(json.dumps, rows), "{broken"]))
    (folder / "retain.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in RETAIN))
    return file


def write_model(folder: Path) -> Path:
    """A model that knows nothing but the corpus's words."""
    tokenizer = build_tokenizer(TEXTS)
    return save_model(build_model("tiny", len(tokenizer), 0), tokenizer, folder)


def request(corpus: Path, extractor: str, **changes: object) -> KeywordRequest:
    asked = KeywordRequest(
        corpus=str(corpus),
        extractor=extractor,
        output=corpus.parent / f"{extractor}.parquet",
        piece_bytes=PIECE,
    )
    return replace(
        asked,
        retain=str(corpus.parent / "retain.jsonl") if extractor in ("log_odds", "linked") else "",
        **changes,
    )


def expected(extractor: str) -> pl.DataFrame:
    """Keywords as an experiment makes them, with all documents in memory."""
    documents, retain = ([Document(answer=t) for t in texts] for texts in (TEXTS, RETAIN))
    arguments = extractor_arguments(extractor, {})
    ids = [d.doc_id for d in documents]
    return frame_of(
        "keywords",
        keyword_rows(
            digest(ids),
            extractor,
            ids,
            extract(extractor, KeywordInputs(documents, retain, arguments=arguments), arguments),
        ),
    )


def check_scores(corpus: Path, model: Path, engine: Engine) -> None:
    """Scores in pieces on this engine are those of all documents at once."""
    asked = ScoreRequest(
        corpus=str(corpus),
        base=str(model),
        scores=("loss", "min_k"),
        output=corpus.parent / "scores.parquet",
        piece_bytes=PIECE,
    )
    done = score_corpus(asked, choose=lambda *_: engine)
    loaded, tokenizer = load_model(str(model), dtype=torch.float32)
    documents = [Document(answer=t) for t in TEXTS]
    passed = document_features(
        loaded, encode_documents(documents, tokenizer, asked.template, asked.max_tokens), 0
    )
    table = pl.read_parquet(asked.output).filter(scorer="loss")
    assert table["doc_id"].to_list() == [d.doc_id for d in documents]
    # other batches, other rounding
    losses = [float(p.token_nll.mean()) for p in passed]
    assert table["value"].to_list() == pytest.approx(losses, rel=1e-5)
    assert done.n_documents == 120 and set(done.ranges) == {"loss", "min_k"}
