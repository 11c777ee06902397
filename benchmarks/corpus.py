"""Passes over the forget corpus beside the plain way: same machine, same run, minimum of the
repeats.

    python -m benchmarks.corpus [--documents 10000 100000 1000000] [--parts keywords,memory,scores]
    [--repeats 2]

keywords  documents per second of `rayunlearn keywords` (read Parquet, count, score, write Parquet:
the whole command but the imports)
          beside sklearn's TfidfVectorizer on the same texts: `fit_transform` alone, on texts in
          memory, and with the rest of the job that it can do: read from Parquet, the ten best words
          of every document with their scores, written to Parquet. Left out there, done by ours:
          ids, phrases, places in the text, copies and empty rows rejected, resuming. On Ray at one
          size: its start is the same at all
memory    peak resident memory of the largest process of a pass, by the size of the corpus
scores    documents per second of `rayunlearn score` beside one document at a time

Every measurement is a process of its own, pinned to as many CPUs as it may use. Wall time is from
the process's own clock after its imports; CPU time is that of the process and its children.
Documents are seeded: 100 words of a Zipf vocabulary of 50,000. Results are written to
build/benchmarks/corpus.parquet.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow
import pyarrow.parquet

ROWS_PER_GROUP = 10_000
VOCABULARY = 50_000
WORDS = 100
# keywords of a document
TOP = 10
# documents
ON_RAY = 100_000


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One process: what it did with how many documents on how many CPUs, and what it took. Memory
    is of the largest process.
    """

    part: str
    way: str
    documents: int
    cpus: int
    seconds: float
    cpu_seconds: float
    peak_mib: float


def write_corpus(file: Path, n: int, seed: int) -> None:
    """`n` documents of 100 words, a row group at a time: an English-like share of short common
    words, punctuation and rare long ones.
    """
    generator = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlcumwfgypbvk"))
    lengths = np.clip(2 + np.log2(np.arange(1, VOCABULARY + 1)) * 0.45, 2, 12).astype(int)
    words = np.array(
        ["".join(generator.choice(letters, length)) for length in lengths], dtype=object
    )
    share = 1 / np.arange(1, VOCABULARY + 1)
    schema = pyarrow.schema([("text", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for begin in range(0, n, ROWS_PER_GROUP):
            size = min(ROWS_PER_GROUP, n - begin)
            drawn = words[generator.choice(VOCABULARY, (size, WORDS), p=share / share.sum())]
            drawn[:, 9::10] += "."
            drawn[:, 4::10] += ","
            writer.write_table(
                pyarrow.table({"text": [" ".join(row) for row in drawn]}, schema=schema)
            )


def sklearn_tfidf(corpus: Path) -> Callable[[], object]:
    """TfidfVectorizer with its defaults, on texts in memory."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = pyarrow.parquet.read_table(corpus)["text"].to_pylist()
    return lambda: TfidfVectorizer().fit_transform(texts)


def sklearn_keywords(corpus: Path) -> Callable[[], object]:
    """The ten best words of every document by TfidfVectorizer, in and out of Parquet; documents
    without a word have fewer.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    def run() -> None:
        vectorizer = TfidfVectorizer()
        weights = vectorizer.fit_transform(pyarrow.parquet.read_table(corpus)["text"].to_pylist())
        document = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
        order = np.lexsort((-weights.data, document))
        best = order[np.arange(len(order)) - weights.indptr[document[order]] < TOP]
        words = vectorizer.get_feature_names_out()[weights.indices[best]]
        table = pl.DataFrame(
            {
                "document": document[best],
                "keyword": pl.Series(words, dtype=pl.String),
                "score": weights.data[best],
            }
        )
        table.write_parquet(corpus.with_name("sklearn.parquet"))

    return run


def our_keywords(extractor: str, engine: str, cpus: int) -> Callable[[Path], Callable[[], object]]:
    """`rayunlearn keywords` with its best ten keywords per document, in and out of Parquet."""

    def prepare(corpus: Path) -> Callable[[], object]:
        from rayunlearn.cluster.corpus_engine import engines
        from rayunlearn.corpus.extract_keywords import KeywordRequest, extract_corpus_keywords

        retain = str(corpus.with_name("retain.parquet")) if extractor == "log_odds" else ""
        output = Path(tempfile.mkdtemp(dir=corpus.parent)) / "keywords.parquet"
        request = KeywordRequest(
            corpus=str(corpus), extractor=extractor, retain=retain, output=output, top=TOP
        )

        def run() -> None:
            with engines(engine, cpus, "local") as choose:
                extract_corpus_keywords(request, choose=choose)

        return run

    return prepare


def our_scores(corpus: Path) -> Callable[[], object]:
    """`rayunlearn score`: loss and min-k by one pass, documents of similar length together."""
    from rayunlearn.corpus.score_documents import ScoreRequest, score_corpus

    output = Path(tempfile.mkdtemp(dir=corpus.parent)) / "scores.parquet"
    request = ScoreRequest(
        corpus=str(corpus), base=str(model_folder(corpus)), scores=("loss", "min_k"), output=output
    )
    return lambda: score_corpus(request)


def plain_scores(corpus: Path) -> Callable[[], object]:
    """The same two scores by a forward pass per document, model and texts in memory."""
    import torch

    from rayunlearn.models.load import load_model

    model, tokenizer = load_model(str(model_folder(corpus)), dtype=torch.float32)
    texts = pyarrow.parquet.read_table(corpus)["text"].to_pylist()

    def run() -> list[tuple[float, float]]:
        found = []
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text)[:256]])
            with torch.no_grad():
                log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            nll = -log_probs.gather(1, ids[0, 1:, None])[:, 0]
            found.append(
                (
                    float(nll.mean()),
                    float(-nll.sort(descending=True).values[: max(1, int(0.4 * len(nll)))].mean()),
                )
            )
        return found

    return run


def model_folder(corpus: Path) -> Path:
    """A random model of the tiny size with the corpus's vocabulary, made once."""
    from rayunlearn.models.load import save_model
    from rayunlearn.models.scratch import build_model, build_tokenizer

    folder = corpus.parent / "model"
    if not folder.exists():
        tokenizer = build_tokenizer(pyarrow.parquet.read_table(corpus)["text"].to_pylist()[:500])
        save_model(build_model("tiny", len(tokenizer), 0), tokenizer, folder)
    return folder


WAYS: dict[str, Callable[[int], Callable[[Path], Callable[[], object]]]] = {
    "sklearn TfidfVectorizer, best words": lambda _: sklearn_keywords,
    "sklearn TfidfVectorizer, fit_transform alone": lambda _: sklearn_tfidf,
    "tfidf, local": lambda cpus: our_keywords("tfidf", "local", cpus),
    "log_odds, local": lambda cpus: our_keywords("log_odds", "local", cpus),
    "tfidf, ray": lambda cpus: our_keywords("tfidf", "ray", cpus),
    "log_odds, ray": lambda cpus: our_keywords("log_odds", "ray", cpus),
    "score, local": lambda _: our_scores,
    "one document at a time": lambda _: plain_scores,
}


def measure_here(part: str, way: str, corpus: Path, cpus: int) -> Measured:
    """Run one way in this process, pinned to its CPUs."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])
    run = WAYS[way](cpus)(corpus)
    begun, cpu = time.perf_counter(), cpu_seconds()
    run()
    seconds, used = time.perf_counter() - begun, cpu_seconds() - cpu
    peak = (
        max(
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        / 1024
    )
    n = pyarrow.parquet.read_metadata(corpus).num_rows
    return Measured(
        part=part, way=way, documents=n, cpus=cpus, seconds=seconds, cpu_seconds=used, peak_mib=peak
    )


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(part: str, way: str, corpus: Path, cpus: int, repeats: int) -> Measured:
    """The fastest of several processes; CPU time and memory are the least of them too."""
    found = []
    for _ in range(repeats):
        words = [
            sys.executable,
            "-m",
            "benchmarks.corpus",
            "--here",
            part,
            way,
            str(corpus),
            str(cpus),
        ]
        settings = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            words, check=True, capture_output=True, text=True, env=os.environ | settings
        )
        found.append(Measured(**json.loads(done.stdout.splitlines()[-1])))
    least = {
        name: min(getattr(m, name) for m in found)
        for name in ("seconds", "cpu_seconds", "peak_mib")
    }
    return Measured(**asdict(found[0]) | least)


def show(measured: Measured, rows: list[Measured]) -> None:
    """One line of the table, with the ratio to the first way of the part on
    one CPU at this size.
    """
    rows.append(measured)
    plain = next(m for m in rows if (m.part, m.documents) == (measured.part, measured.documents))
    rate, ratio, cpu = (
        measured.documents / measured.seconds,
        plain.seconds / measured.seconds,
        plain.cpu_seconds / measured.cpu_seconds,
    )
    print(
        f"| {measured.documents:,} | {measured.way} | {measured.cpus} | {rate:,.0f} |"
        f" {measured.seconds:.1f} | {measured.cpu_seconds:.1f} | {ratio:.2f} | {cpu:.2f} |"
        f" {measured.peak_mib:.0f} |",
        flush=True,
    )


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--parts", default="keywords,scores")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--here", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        part, way, corpus, cpus = options.here
        print(json.dumps(asdict(measure_here(part, way, Path(corpus), int(cpus)))))
        return
    rows: list[Measured] = []
    print(
        "| documents | way | CPUs | documents/s | wall s | CPU s | wall ratio | CPU ratio | peak"
        " MiB |\n|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder) / "retain.parquet", min(options.documents), seed=1)
        if "keywords" in options.parts:
            for n in options.documents:
                corpus = Path(folder) / f"{n}.parquet"
                write_corpus(corpus, n, seed=0)
                repeats = 1 if n >= 1_000_000 else options.repeats
                ways = [w for w in WAYS if w.startswith(("sklearn", "tfidf", "log_odds"))]
                for way in [w for w in ways if not w.endswith("ray") or n == ON_RAY]:
                    for cpus in (1,) if way.startswith("sklearn") else (1, 2):
                        show(measure("keywords", way, corpus, cpus, repeats), rows)
        if "scores" in options.parts:
            corpus = Path(folder) / "scored.parquet"
            write_corpus(corpus, 2000, seed=2)
            model_folder(corpus)
            for way in ("one document at a time", "score, local"):
                show(measure("scores", way, corpus, 1, options.repeats), rows)
    target = Path("build/benchmarks/corpus.parquet")
    target.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(list(map(asdict, rows))).write_parquet(target)


if __name__ == "__main__":
    main()
