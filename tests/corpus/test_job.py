"""Passes over a corpus in pieces: the same rows whatever the engine and the cut, resumed by piece,
copies and bad rows rejected.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from itertools import cycle
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from rayunlearn.cli.arguments import DONE, MISTAKE
from rayunlearn.cli.main import main
from rayunlearn.cluster.corpus_engine import engines, progress_line, reporting
from rayunlearn.corpus import extract_keywords, score_documents
from rayunlearn.corpus import source as source_module
from rayunlearn.corpus.engine import (
    Engine,
    OnDone,
    PartitionResult,
    ProcessPartition,
    WorkerFactory,
    process_engine,
    run_in_sequence,
)
from rayunlearn.corpus.extract_keywords import KeywordJob, extract_corpus_keywords
from rayunlearn.corpus.job import JobProgress
from rayunlearn.corpus.partitions import MODEL_PARTITION_BYTES, PARTITION_BYTES
from rayunlearn.corpus.score_documents import ScoreRequest, score_corpus
from rayunlearn.corpus.source import chunks_of
from rayunlearn.data.documents import Document
from rayunlearn.errors import UserError
from tests.corpus_in_pieces import (
    PIECE,
    TEXTS,
    check_scores,
    expected,
    request,
    write_corpus,
    write_model,
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.mark.parametrize("extractor", ["tfidf", "log_odds", "linked", "slots", "textrank"])
def test_keywords_in_pieces_are_those_of_the_whole_corpus(extractor: str, corpus: Path) -> None:
    done = extract_corpus_keywords(request(corpus, extractor), show=2)
    table = pl.read_parquet(corpus.parent / f"{extractor}.parquet")
    assert table.rows() == expected(extractor).rows()
    assert done.n_documents == 120 and done.n_rejected == 4
    assert done.n_keywords == table.unique(["doc_id", "keyword"]).height and [
        i for i, _ in done.first
    ] == [Document(answer=t).doc_id for t in TEXTS[:2]]


def test_two_processes_write_what_one_writes(corpus: Path) -> None:
    with process_engine(2) as engine:
        extract_corpus_keywords(request(corpus, "tfidf"), choose=lambda *_: engine)
    assert pl.read_parquet(corpus.parent / "tfidf.parquet").rows() == expected("tfidf").rows()


def slow_note() -> ProcessPartition:
    """A worker that says in which process it did a piece; piece 7 cannot be done."""

    def do(at: int) -> PartitionResult:
        if at == 7:
            raise ValueError("a piece that cannot be done")
        time.sleep(0.05)
        return PartitionResult(piece=at, n_documents=1, counts={"process": os.getpid()})

    return do


def test_every_process_takes_part_and_stays_for_the_next_pass() -> None:
    with process_engine(2) as engine:
        passes_of: list[dict[int, int]] = []
        for pieces in (range(100, 200), range(200, 240)):
            notes: list[PartitionResult] = []
            engine(slow_note, list(pieces), notes.append)
            assert sorted(note.piece for note in notes) == list(pieces)
            passes_of.append({note.piece: note.counts["process"] for note in notes})
        first, second = (set(done.values()) for done in passes_of)
        assert first == second and len(first) == 2 and os.getpid() in first
        with pytest.raises(ValueError, match="cannot be done"):
            engine(slow_note, list(range(20)), notes.append)


def test_what_is_set_aside_says_where_and_why(corpus: Path) -> None:
    extract_corpus_keywords(request(corpus, "tfidf"))
    aside = pl.read_parquet(corpus.parent / "tfidf.quarantine.parquet")
    assert sorted(aside.select("row", "reason").rows()) == [
        (60, "the same document as an earlier one (row 2)"),
        (121, "the same document as an earlier one (row 2)"),
        (122, "text is empty"),
        (123, "not JSON: Expecting property name enclosed in double quotes"),
    ]


class Stopped(Exception):
    """What ends a pass in the middle."""


def stopping_after(n: int, done: list[int]) -> Engine:
    """An engine that is killed after n pieces of the call."""

    def engine(worker: WorkerFactory, pieces: Sequence[int], tell: OnDone) -> None:
        do = worker()
        for at in pieces:
            if len(done) == n:
                raise Stopped
            done.append(at)
            tell(do(at))

    return engine


def model_keywords(corpus: Path, model: Path, engine: Engine) -> None:
    asked = request(corpus, "embedding", base=str(model))
    extract_corpus_keywords(asked, choose=lambda *_: engine)


def model_scores(corpus: Path, model: Path, engine: Engine) -> None:
    output = corpus.parent / "scores.parquet"
    asked = ScoreRequest(
        corpus=str(corpus), output=output, base=str(model), scores=["loss"], piece_bytes=PIECE
    )
    score_corpus(asked, choose=lambda *_: engine)


WORK_WITH_MODEL = {extract_keywords: model_keywords, score_documents: model_scores}


def test_a_call_that_was_killed_goes_on_where_it_stopped(corpus: Path) -> None:
    """Killed after 3 pieces of the count, then after 2 of the keywords: no piece is done twice and
    the rows are the same.
    """
    first, second, third = list[int](), list[int](), list[int]()
    with pytest.raises(Stopped):
        extract_corpus_keywords(
            request(corpus, "tfidf"), choose=lambda *_: stopping_after(3, first)
        )
    n = len(source_module.corpus_source(str(corpus), piece_bytes=PIECE).pieces)
    # the pieces left to count, and the two that hold copies
    rest = n - 3 + 2
    with pytest.raises(Stopped):
        extract_corpus_keywords(
            request(corpus, "tfidf"), choose=lambda *_: stopping_after(rest + 2, second)
        )
    assert not (corpus.parent / "tfidf.parquet").exists()
    extract_corpus_keywords(request(corpus, "tfidf"), choose=lambda *_: stopping_after(1000, third))
    assert (first, second[: n - 3], second[rest:], third) == (
        [0, 1, 2],
        list(range(3, n)),
        [0, 1],
        list(range(2, n)),
    )
    assert pl.read_parquet(corpus.parent / "tfidf.parquet").rows() == expected("tfidf").rows()
    assert not (corpus.parent / "tfidf.work").exists()


def test_another_setting_or_a_changed_file_is_other_work(corpus: Path) -> None:
    for changes in ({}, {"top": 1}, {"chunk_words": 5}):
        done: list[int] = []
        with pytest.raises(Stopped):
            extract_corpus_keywords(
                request(corpus, "tfidf", **changes),
                choose=lambda *_, done=done: stopping_after(1, done),
            )
        assert done == [0]
    assert len(list((corpus.parent / "tfidf.work").iterdir())) == 3
    corpus.write_text(corpus.read_text() + "\n")
    done = []
    with pytest.raises(Stopped):
        extract_corpus_keywords(request(corpus, "tfidf"), choose=lambda *_: stopping_after(1, done))
    assert done == [0] and len(list((corpus.parent / "tfidf.work").iterdir())) == 4


@pytest.mark.parametrize("changed", ["code_digest", "library_versions"])
def test_other_code_or_libraries_are_other_work(
    corpus: Path, model: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after two pieces; the same code and libraries would go on with the third."""
    for module, work in WORK_WITH_MODEL.items():
        first, second = list[int](), list[int]()
        with pytest.raises(Stopped):
            work(corpus, model, stopping_after(2, first))
        with monkeypatch.context() as patch:
            patch.setattr(module, changed, lambda *_: {"other": "1"})
            with pytest.raises(Stopped):
                work(corpus, model, stopping_after(2, second))
        assert first == second == [0, 1]


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with the work of a call that was killed in its last piece."""
    corpus = write_corpus(tmp_path_factory.mktemp("stopped"))
    n = len(source_module.corpus_source(str(corpus), piece_bytes=PIECE).pieces)
    with pytest.raises(Stopped):
        extract_corpus_keywords(
            request(corpus, "tfidf"), choose=lambda *_: stopping_after(n + 2 + n - 1, [])
        )
    return corpus


def test_a_part_that_is_not_what_was_written_is_done_again_and_said(
    stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every file of the work, one after another, and each kind in three ways: parts, counts, ids,
    copies, what was set aside, and the notes of all these.
    """
    damages: tuple[Callable[[Path], None], ...] = (flip_bit, cut_off, Path.unlink)
    output = stopped.parent / "tfidf.parquet"
    work = stopped.parent / "tfidf.work"
    before = {f.relative_to(work): f.read_bytes() for f in work.rglob("*") if f.is_file()}
    assert len({name.parent.name for name in before}) == 9 and len(before) > 60
    for name, damage in zip(sorted(before), cycle(damages), strict=False):
        caplog.clear()
        damage(work / name)
        extract_corpus_keywords(request(stopped, "tfidf"))
        assert pl.read_parquet(output).rows() == expected("tfidf").rows()
        assert pl.read_parquet(output.with_suffix(".quarantine.parquet")).height == 4
        said = [line for line in caplog.messages if "this part is done again" in line]
        # a note that is gone is a part that was never done
        assert len(said) == (0 if damage is Path.unlink and name.suffix == ".json" else 1)
        for each, content in before.items():
            (work / each).parent.mkdir(parents=True, exist_ok=True)
            (work / each).write_bytes(content)


def test_a_part_that_is_damaged_before_the_others_are_done_is_done_again(corpus: Path) -> None:
    damaged = list[Path]()

    def report(progress: JobProgress) -> None:
        if progress.name == "keywords" and progress.done == 3 and not damaged:
            damaged.extend((corpus.parent / "tfidf.work").rglob("parts/000001.parquet"))
            flip_bit(damaged[0])

    extract_corpus_keywords(request(corpus, "tfidf"), report=report)
    assert damaged
    assert pl.read_parquet(corpus.parent / "tfidf.parquet").rows() == expected("tfidf").rows()


@pytest.mark.parametrize("name", ["parts/000001.parquet", "corpus/aside/000002.parquet"])
def test_a_part_that_is_damaged_at_the_last_moment_is_not_published(
    name: str, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaging(job: KeywordJob, _show: int) -> tuple[()]:
        files = sorted((job.folder / name).parent.iterdir())
        flip_bit(files[-1])
        return ()

    with monkeypatch.context() as patch:
        patch.setattr(extract_keywords, "_first", damaging)
        with pytest.raises(UserError, match="the same command does this part again and keeps"):
            extract_corpus_keywords(request(corpus, "tfidf"))
    assert not (corpus.parent / "tfidf.parquet").exists()
    extract_corpus_keywords(request(corpus, "tfidf"))
    assert pl.read_parquet(corpus.parent / "tfidf.parquet").rows() == expected("tfidf").rows()


def test_a_disk_that_does_not_keep_what_is_written_is_one_line(corpus: Path) -> None:
    def losing(worker: WorkerFactory, pieces: Sequence[int], tell: OnDone) -> None:
        run_in_sequence(worker, pieces, tell)
        for file in (corpus.parent / "tfidf.work").rglob("ids/000000.npy"):
            cut_off(file)

    with pytest.raises(
        UserError, match=r"must keep what is written; after 3 attempts .*000000\.npy"
    ):
        extract_corpus_keywords(request(corpus, "tfidf"), choose=lambda *_: losing)


def test_what_a_killed_writer_left_is_no_part_of_a_folder(corpus: Path) -> None:
    def leaving(worker: WorkerFactory, pieces: Sequence[int], tell: OnDone) -> None:
        run_in_sequence(worker, pieces, tell)
        for folder in (corpus.parent / "found.work").rglob("parts"):
            (folder / ".000000.parquet.12345678.tmp").write_bytes(b"half")

    asked = replace(request(corpus, "tfidf"), output=corpus.parent / "found")
    extract_corpus_keywords(asked, choose=lambda *_: leaving)
    assert all(file.suffix == ".parquet" for file in (corpus.parent / "found").iterdir())


def test_the_best_keywords_alone_are_written(corpus: Path) -> None:
    done = extract_corpus_keywords(request(corpus, "tfidf", top=2))
    whole = expected("tfidf").with_columns(
        new=pl.struct("keyword").is_first_distinct().over("doc_id")
    )
    best = whole.filter(pl.col("new").cum_sum().over("doc_id") <= 2).drop("new")
    assert (
        pl.read_parquet(corpus.parent / "tfidf.parquet").rows() == best.rows()
        and done.n_keywords == 240
    )


def test_a_folder_has_one_file_per_partition_and_is_not_written_over(corpus: Path) -> None:
    folder = corpus.parent / "found"
    asked = replace(request(corpus, "tfidf"), output=folder)
    extract_corpus_keywords(asked)
    assert len(list(folder.glob("*.parquet"))) > 5
    assert (
        pl.concat(pl.read_parquet(file) for file in sorted(folder.iterdir())).rows()
        == expected("tfidf").rows()
    )
    with pytest.raises(UserError, match="--output must be a folder that is not there yet"):
        extract_corpus_keywords(asked)


def test_chunks_hold_every_word_once() -> None:
    document = Document(answer=" One two. Three,\nfour  five!")
    assert [d.answer for d in chunks_of(document, 2)] == ["One two.", "Three,\nfour", "five!"]
    assert [d.answer for d in chunks_of(Document(answer="..."), 2)] == ["..."]
    assert [d.answer for d in chunks_of(document, 5)] == ["One two. Three,\nfour  five!"]


def test_scores_in_pieces_are_those_of_all_documents_at_once(corpus: Path, model: Path) -> None:
    check_scores(corpus, model, run_in_sequence)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scores", "moderate"], "unknown score 'moderate'"),
        (
            ["--scores", "loss", "--set", "min_k.fraction=0.2"],
            "unknown option of loss 'min_k.fraction'",
        ),
        (
            ["--scores", "min_k", "--set", "min_k.fraction=2"],
            "min_k.fraction must be in (0, 1], got 2",
        ),
        (["--max-tokens", "1"], "data.max_tokens must be >= 8, got 1"),
        (["--engine", "spark"], "unknown --engine 'spark'"),
    ],
)
def test_a_mistake_in_scoring_is_one_line(
    words: list[str], message: str, corpus: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(corpus), "--base", str(model), *words]) == MISTAKE
    assert message in capsys.readouterr().err


def test_scores_on_the_command_line(
    corpus: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = corpus.parent / "s.parquet"
    words = [
        "score",
        str(corpus),
        "--base",
        str(model),
        "--scores",
        "loss,zlib",
        "--output",
        str(output),
    ]
    assert (
        main(words) == DONE and "2 scores of 120 documents, 4 rejected" in capsys.readouterr().out
    )
    assert pl.read_parquet(output).height == 240


def test_the_engine_goes_by_size(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte more than the limit is streamed through Ray; `--engine local` is not."""
    source = source_module.corpus_source(str(corpus))
    assert not source_module.exceeds_local_limit(source)
    monkeypatch.setattr(source_module, "LARGE_BYTES", corpus.stat().st_size - 1)
    assert source_module.exceeds_local_limit(source)
    for name, module in (
        ("auto", "rayunlearn.cluster.corpus_engine"),
        ("local", "rayunlearn.corpus.engine"),
    ):
        with engines(name, 1, "auto") as choose:
            assert choose([source], False).__module__ == module


def test_a_pass_says_where_it_stands_before_its_first_piece_and_after_each(corpus: Path) -> None:
    told: list[JobProgress] = []
    extract_corpus_keywords(request(corpus, "tfidf"), report=told.append)
    n = len(source_module.corpus_source(str(corpus), piece_bytes=PIECE).pieces)
    mine = [standing for standing in told if standing.name == "keywords"]
    assert [(s.done, s.pieces, s.fresh_pieces) for s in mine] == [
        (done, n, done) for done in range(n + 1)
    ]
    assert progress_line(mine[0]) == f"keywords: 0/{n} partitions, 0 documents" and mine[
        -1
    ].n_documents == len(TEXTS)


def test_a_model_reads_pieces_of_a_size_that_says_how_far_it_is(tmp_path: Path) -> None:
    """A megabyte of text is one piece to count and four or more to score."""
    file = tmp_path / "megabyte.txt"
    file.write_text(
        "".join(f"line {at} of a text that is long enough to be cut\n" for at in range(20_000))
    )
    counted, read = (
        len(source_module.corpus_source(str(file), piece_bytes=size).pieces)
        for size in (PARTITION_BYTES, MODEL_PARTITION_BYTES)
    )
    assert counted == 1 and read >= 4


def test_a_terminal_gets_a_bar_and_its_time_left_runs_down() -> None:
    """10 of 40 pieces in 20 s: 60 s left, 50 of them ten seconds later; nothing of the bar is left
    behind.
    """
    standing = JobProgress(
        name="keywords",
        done=10,
        pieces=40,
        n_documents=2000,
        fresh_documents=2000,
        fresh_pieces=10,
        seconds=20.0,
    )
    assert progress_line(standing).endswith("100 documents/s, about 60 s left") and progress_line(
        standing, waited=10.0
    ).endswith("about 50 s left")
    screen = Console(file=StringIO(), force_terminal=True, width=100)
    with reporting(screen) as report:
        report(standing)
    written = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "\u2501" in written and "10/40 partitions, 2,000 documents, 100 documents/s" in written


def test_progress_says_rate_and_time_left() -> None:
    """30 pieces of 40 done, 10 of them in this call's 20 s with 2,000 documents: 100 a second, 20 s
    left.
    """
    standing = JobProgress(
        name="keywords",
        done=30,
        pieces=40,
        n_documents=6000,
        fresh_documents=2000,
        fresh_pieces=10,
        seconds=20.0,
    )
    assert (
        progress_line(standing)
        == "keywords: 30/40 partitions, 6,000 documents, 100 documents/s, about 20 s left"
    )
    books = replace(standing, done=40, n_documents=84, fresh_documents=28, seconds=100.0)
    assert progress_line(books) == "keywords: 40/40 partitions, 84 documents, 0.28 documents/s"
