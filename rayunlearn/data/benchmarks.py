"""Public unlearning benchmarks, from folders on this machine in the layout that the Hub gives them.
Nothing is fetched.

`load_benchmark("tofu", folder)` -> a corpus, whose `probes` have more splits than forget and
retain, with the letters of multiple-choice questions, what stands before them, and a record of
every file. `data.name=tofu data.path=folder` uses it in a trial (`benchmark_corpus`).
docs/benchmarks.md says how to get the folders.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rayunlearn.config import Data, Value
from rayunlearn.data import checksums
from rayunlearn.data.benchmark_files import (
    BenchmarkFolder,
    BenchmarkParts,
    ChoiceQuestion,
    Documents,
    split_article,
)
from rayunlearn.data.documents import Corpus, Document, Rejected
from rayunlearn.data.files import corpus_name, file_record, limit_notes, load_files
from rayunlearn.data.hub import folder_of
from rayunlearn.data.known import (
    KNOWN_TABLES,
    RULE_OPTIONS,
    chosen_facts,
    read_relation,
    rule_of,
)
from rayunlearn.data.multiple_choice import solved_question
from rayunlearn.data.question_benchmarks import blur, knowundo, lume
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.ranges import options_of

BIOLOGY_SUBJECTS = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "high_school_biology",
    "human_aging",
    "medical_genetics",
    "nutrition",
    "professional_medicine",
    "virology",
)
NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)")
# subjects of MMLU that are of one domain; the benchmark's own categories are wider
SUBJECT_GROUPS = {
    "biology": BIOLOGY_SUBJECTS,
    "psychology": ("high_school_psychology", "professional_psychology"),
    "geography": ("high_school_geography",),
    "government": ("high_school_government_and_politics", "us_foreign_policy"),
    "history": ("high_school_us_history", "high_school_world_history", "prehistory"),
    "economics": ("high_school_macroeconomics", "high_school_microeconomics"),
}
# questions of each fictitious author, one after another in every file of TOFU about them
QUESTIONS_OF_AN_AUTHOR = 20
FICTITIOUS = ("forget", "retain", "holdout")
GATED = (
    "WMDP's forget corpora are not public. Ask for them at"
    " https://huggingface.co/datasets/cais/wmdp-bio-forget-corpus (bio) and"
    " https://huggingface.co/datasets/cais/wmdp-corpora (cyber, and both retain corpora), signed"
    " in, and put the files beside the questions: "
)
# names that these files have had; the card of wmdp-corpora has a folder of shards for each
CORPORA = {
    "bio": (
        (
            "bio_remove_dataset",
            "bio-forget-corpus",
            "bio_forget_corpus",
            "bio-forget-corpus/train",
            "wmdp-bio-forget-corpus/train",
            "wmdp-bio-forget-corpus/data/train",
        ),
        (
            "bio-retain-corpus",
            "bio_retain_dataset",
            "bio-retain-corpus/train",
            "wmdp-corpora/bio-retain-corpus/train",
        ),
    ),
    "cyber": (
        (
            "cyber-forget-corpus",
            "cyber_remove_dataset",
            "cyber-forget-corpus/train",
            "wmdp-corpora/cyber-forget-corpus/train",
        ),
        (
            "cyber-retain-corpus",
            "cyber_retain_dataset",
            "cyber-retain-corpus/train",
            "wmdp-corpora/cyber-retain-corpus/train",
        ),
    ),
}


def tofu(folder: BenchmarkFolder, *, size: str = "10", paraphrased: bool = False) -> BenchmarkParts:
    """TOFU (2401.06121): forget `size` (01, 05 or 10) percent of fictitious authors; probes with
    paraphrases and wrong answers.

    Splits: forget, retain, real_authors, world_facts, and holdout (for membership) where the folder
    has it; with `paraphrased` a split of that name too, the forget questions in the other words
    that the folder has, with the same answers. The twenty questions of a fictitious author are one
    group.
    """
    require(size in ("01", "05", "10"), "tofu.size must be 01, 05 or 10", size)
    names = {"forget": f"forget{size}_perturbed", "retain": "retain_perturbed"}
    names |= {"real_authors": "real_authors_perturbed", "world_facts": "world_facts_perturbed"}
    names |= {"holdout": f"holdout{size}"} if folder.has(f"holdout{size}") else {}

    def authors(split: str, table: str) -> Documents:
        return folder.blocks(table, f"{split} author", QUESTIONS_OF_AN_AUTHOR)

    probes = {
        split: authors(split, name) if split in FICTITIOUS else folder.documents(name)
        for split, name in names.items()
    }
    return BenchmarkParts(
        forget=authors("forget", f"forget{size}"),
        retain=authors("retain", f"retain{100 - int(size)}"),
        probes=probes | ({"paraphrased": _reworded(probes["forget"])} if paraphrased else {}),
    )


def _reworded(documents: Documents) -> Documents:
    """The questions that have another wording, in it; once each."""
    questions = (
        replace(d, prompt=d.prompt_paraphrase, prompt_paraphrase=d.prompt) for d in documents
    )
    return tuple({d.doc_id: d for d in questions if d.prompt}.values())


def muse_news(
    folder: BenchmarkFolder, *, task: str = "raw", step: int = 1, words: int = 0, shots: int = 10
) -> BenchmarkParts:
    """MUSE-News (2407.06460): articles. `task` raw, or the `step` (1-4) of `scal` (growing) and
    `sust` (one after another).

    `words` cuts articles into pieces (0: whole); `shots` solved questions stand before each
    question, as in MUSE.
    """
    return _muse(folder, task, step, words, shots)


def muse_books(
    folder: BenchmarkFolder, *, task: str = "raw", step: int = 1, words: int = 200, shots: int = 10
) -> BenchmarkParts:
    """MUSE-Books (2407.06460): four novels, so `words` cuts them into pieces. Its card lists no
    `scal` and `sust`; a folder may have them.
    """
    return _muse(folder, task, step, words, shots)


def wmdp_bio(
    folder: BenchmarkFolder, *, corpora: bool = False, documents: int = 0
) -> BenchmarkParts:
    """WMDP (2403.03218), biosecurity: 1,273 questions as split `forget`; MMLU's as `retain` where
    the folder `mmlu` stands beside them.

    `corpora` also wants the gated texts, and says how to get them; `documents` takes the first n to
    forget (0: all).
    """
    return _wmdp(folder, "bio", corpora, documents)


def wmdp_cyber(
    folder: BenchmarkFolder, *, corpora: bool = False, documents: int = 0
) -> BenchmarkParts:
    """WMDP (2403.03218), cybersecurity: 1,987 questions as split `forget`. `corpora` and
    `documents` as for `wmdp_bio`.
    """
    return _wmdp(folder, "cyber", corpora, documents)


def mmlu(folder: BenchmarkFolder, *, part: str = "all", shots: int = 0) -> BenchmarkParts:
    """MMLU (2009.03300), 57 subjects: split `mmlu`, or with `part` biology the ten biology subjects
    as `forget` and the others as `retain` (Doshi & Stickland 2411.12103). `shots` (0-5) solved
    questions of its own subject stand before each.

    Layouts: the authors' `test/<subject>_test.csv`, or the Hub's `all/test-*.parquet`.
    """
    require(part in ("all", "biology"), "mmlu.part must be 'all' or 'biology'", part)
    require(0 <= shots <= 5, "mmlu.shots must be in 0-5", shots)
    questions, dev = (
        _unique_questions(folder, _subjects(folder, "test")),
        (_subjects(folder, "dev", repeats=True) if shots else []),
    )
    sides = {
        split: tuple(
            c.document
            for c in questions
            if (c.document.topic in BIOLOGY_SUBJECTS) == (split == "forget")
        )
        for split in ("forget", "retain")
    }
    solved = {
        subject: [solved_question(c.document, c.true_letter) for c in choices[:shots]]
        for subject, choices in dev
    }
    return BenchmarkParts(
        probes=sides if part == "biology" else {"mmlu": tuple(c.document for c in questions)},
        true_letters={c.document.doc_id: c.true_letter for c in questions},
        shots={subject: "".join(texts) for subject, texts in solved.items()},
    )


def mmlu_domain(
    folder: BenchmarkFolder,
    *,
    forget: str = "biology",
    retain: str = "psychology,marketing,sociology",
    untouched: str = "geography,government,history",
    questions: int = 0,
    above_chance: bool = True,
) -> BenchmarkParts:
    """MMLU's subjects as a domain to unlearn, as WMDP has one: questions with the text of the true
    option as answer, the others as wrong ones, and no letters.

    `forget`, `retain` and `untouched` name subjects, or groups of `SUBJECT_GROUPS`, the first
    `questions` of each (0: all). Of the forget subjects every other question is trained on; the
    ones between are split `near`. With `above_chance` a trial leaves out the subjects that its
    model does not answer above chance (`trial.domain`).
    """
    require(questions >= 0, "mmlu-domain.questions must be >= 0", questions)
    choices = _unique_questions(folder, _subjects(folder, "test"))
    by_subject: dict[str, list[Document]] = {}
    for choice in choices:
        by_subject.setdefault(choice.document.topic, []).append(choice.document)
    sets: dict[str, Documents] = {}
    used: set[str] = set()
    for name, setting in {"forget": forget, "retain": retain, "untouched": untouched}.items():
        subjects = [s for s in _named_subjects(setting, by_subject) if s not in used]
        rule = f"mmlu-domain.{name} must name subjects that no earlier set has"
        require(bool(subjects) or not setting, rule, setting)
        sets[name] = tuple(d for s in subjects for d in by_subject[s][: questions or None])
        used |= {*subjects}
    sets |= {"forget": sets["forget"][::2], "near": sets["forget"][1::2]}
    return BenchmarkParts(
        forget=sets["forget"],
        retain=sets["retain"],
        probes={name: part for name, part in sets.items() if part},
        notes=() if above_chance else ("every subject is there, above chance or not",),
    )


def _named_subjects(setting: str, subjects: Iterable[str]) -> tuple[str, ...]:
    """The subjects that a setting of `mmlu_domain` names, by themselves or by their group."""
    names = [name.strip() for name in setting.split(",") if name.strip()]
    for name in names:
        if name not in SUBJECT_GROUPS and name not in subjects:
            raise unknown_name(
                "subject or group of mmlu-domain", name, (*SUBJECT_GROUPS, *subjects)
            )
    listed = (subject for name in names for subject in SUBJECT_GROUPS.get(name, (name,)))
    return tuple(s for s in dict.fromkeys(listed) if s in subjects)


def rwku(folder: BenchmarkFolder, *, targets: str = "", passages: bool = True) -> BenchmarkParts:
    """RWKU (2406.10890): real people. `targets` names some, separated by commas ('': all 200).

    Splits: forget (levels 1-3 together), level1, level2, level3, retain (both neighbour levels),
    members and retain_members; what is asked about one person is one group. The forget set is the
    passages about the targets, if wanted; RWKU has no retain set by design.
    """
    subjects = tuple(name.strip() for name in targets.split(",") if name.strip())
    levels = {
        f"level{n}": _about(folder.documents(f"All/forget_level{n}"), subjects) for n in (1, 2, 3)
    }
    neighbours = tuple(
        d for n in (1, 2) for d in _about(folder.documents(f"All/neighbor_level{n}"), subjects)
    )
    together = {d.doc_id: d for documents in levels.values() for d in documents}
    unknown = [name for name in subjects if name not in {d.topic for d in together.values()}]
    rule = "rwku.targets must name people of the benchmark"
    require(bool(together) and not unknown, rule, ", ".join(unknown) or targets)
    members = {"members": "All/forget_mia", "retain_members": "All/retain_mia"}
    return BenchmarkParts(
        forget=_about(folder.documents("All/passage"), subjects) if passages else (),
        probes={
            "forget": tuple(together.values()),
            "retain": tuple({d.doc_id: d for d in neighbours}.values()),
            **levels,
        }
        | {
            split: documents
            for split, table in members.items()
            if folder.has(table) and (documents := _members(folder, table, subjects))
        },
    )


def _members(folder: BenchmarkFolder, table: str, subjects: tuple[str, ...]) -> Documents:
    """Texts of a membership table: of the targets, where the table says whom a text is about."""
    documents = folder.documents(table)
    if any(document.topic for document in documents):
        return _about(documents, subjects if table == "All/forget_mia" else ())
    if subjects and documents:
        folder.notes.append(f"{table} names no people: rwku.targets does not filter it")
    return documents


def biology(
    folder: BenchmarkFolder,
    *,
    forget: str = "Wikipedia_Biology",
    retain: str = "Wikipedia_History_Concepts-in-Physics_Philosophy",
    words: int = 200,
) -> BenchmarkParts:
    """Articles as .txt files in a folder to forget and one to retain (Doshi & Stickland 2411.12103;
    the names are theirs), in pieces of `words`.

    Asked are MMLU's questions where the folder `mmlu` stands beside them, else the pieces
    themselves.
    """
    about, other = (
        split_article(folder.articles(forget), words),
        split_article(folder.articles(retain), words),
    )
    questions = _add_mmlu_probes(folder, part="biology")
    if questions is None:
        notes = ("no folder mmlu: the articles themselves are asked",)
        return BenchmarkParts(
            forget=about, retain=other, probes={"forget": about, "retain": other}, notes=notes
        )
    return BenchmarkParts(
        forget=about, retain=other, probes=questions.probes, true_letters=questions.true_letters
    )


def known(
    folder: BenchmarkFolder,
    *,
    forget: str = "capitals:Europe",
    retain: str = "continents,chemical_symbols,opposites",
    untouched: str = "languages,currencies",
    near: str = "",
    far: str = "authors,past_tenses",
) -> BenchmarkParts:
    """Facts that a model knows by itself (docs/benchmarks.md): the product's own tables, or a
    folder of such. `forget`, `retain`, `untouched`, `near` and `far` name relations or slices of
    them; the first two train, and all are asked, each in a split of its name. An empty `near` is
    what else the relations of `forget` have.

    In a trial the model is asked first, and what it knows by `KnownRule`, whose settings are
    options too, is left of them. Loaded alone, every fact is there.
    """
    settings = dict(forget=forget, retain=retain, untouched=untouched, near=near, far=far)
    sets = {name: tuple(part) for name, part in chosen_facts(settings, folder.root).items()}
    relations = dict.fromkeys(d.topic.partition(":")[0] for part in sets.values() for d in part)
    for name in relations:
        n_facts = read_relation(name, folder.root).n_facts
        folder.records.append(file_record(name, [folder.root / f"{name}.json"], n_facts))
    return BenchmarkParts(
        forget=sets["forget"],
        retain=sets["retain"],
        probes={name: part for name, part in sets.items() if part},
    )


def files(
    folder: BenchmarkFolder,
    *,
    forget: str = "forget",
    retain: str = "retain",
    probe_forget: str = "",
    probe_retain: str = "",
    columns: str = "",
) -> BenchmarkParts:
    """Any folder of your own, as docs/data.md says."""
    data = Data(
        name="files",
        path=str(folder.root),
        columns=columns,
        forget=forget,
        retain=retain,
        probe_forget=probe_forget,
        probe_retain=probe_retain,
    )
    corpus = load_files(data)
    folder.rejected.extend(corpus.rejected)
    folder.notes.extend(corpus.notes)
    for name in dict.fromkeys(filter(None, (forget, retain, probe_forget, probe_retain))):
        # for the record of its file
        folder.rows(name)
    return BenchmarkParts(forget=corpus.forget, retain=corpus.retain, probes=corpus.probes)


@dataclass(frozen=True)
class Benchmark:
    """A row of the table: the loader, where the data live, under what terms, and what its files
    were.
    """

    function: Callable[..., BenchmarkParts]
    home: str
    licence: str
    recorded: checksums.FileChecksums
    source: str
    # where its files are when data.path names none: the product's own
    shipped: Path | None = None
    # the settings of `KnownRule`, by which a model's answers decide what a trial has, are options
    has_rule: bool = False


LOADERS = {
    row.function.__name__.replace("_", "-"): row
    for row in (
        Benchmark(tofu, "locuslab/TOFU", "MIT", checksums.TOFU, "2401.06121"),
        Benchmark(
            muse_news,
            "muse-bench/MUSE-News",
            "CC BY 4.0 (card); texts are the BBC's",
            checksums.MUSE_NEWS,
            "2407.06460",
        ),
        Benchmark(
            muse_books,
            "muse-bench/MUSE-Books",
            "CC BY 4.0 (card); texts are the author's",
            checksums.MUSE_BOOKS,
            "2407.06460",
        ),
        Benchmark(
            wmdp_bio,
            "cais/wmdp, cais/wmdp-bio-forget-corpus (gated)",
            "MIT; corpora restricted",
            checksums.WMDP,
            "2403.03218",
        ),
        Benchmark(
            wmdp_cyber,
            "cais/wmdp, cais/wmdp-corpora (gated)",
            "MIT; corpora restricted",
            checksums.WMDP,
            "2403.03218",
        ),
        Benchmark(mmlu, "cais/mmlu", "MIT", checksums.MMLU, "2009.03300"),
        Benchmark(mmlu_domain, "cais/mmlu", "MIT", checksums.MMLU, "2009.03300; 2403.03218"),
        Benchmark(
            lume,
            "llmunlearningsemeval2025organization/semeval25-unlearning-dataset-public;"
            " github amazon-science/lume-llm-unlearning",
            "see the data's own",
            checksums.NO_CHECKSUMS,
            "2502.15097; 2504.02883",
        ),
        Benchmark(knowundo, "zjunlp/KnowUnDo", "MIT", checksums.NO_CHECKSUMS, "2407.01920"),
        Benchmark(blur, "forgelab/BLUR", "see its card", checksums.NO_CHECKSUMS, "2506.15699"),
        Benchmark(rwku, "jinzhuoran/RWKU", "CC BY 4.0", checksums.NO_CHECKSUMS, "2406.10890"),
        Benchmark(
            known,
            "the product's own tables",
            "CC0",
            checksums.NO_CHECKSUMS,
            "ours",
            shipped=KNOWN_TABLES,
            has_rule=True,
        ),
        Benchmark(biology, "your own article folders", "-", checksums.NO_CHECKSUMS, "2411.12103"),
        Benchmark(files, "your own", "-", checksums.NO_CHECKSUMS, "-"),
    )
}


def benchmark_corpus(data: Data) -> Corpus:
    """The benchmark `data.name` at `data.path` as a corpus to unlearn; `data.options` go to its
    loader.

    The retain set is cut to `data.limit_retain` documents, and retain probes that are among those
    cut are not asked. Raises UserError as `load_benchmark` does, and for a benchmark that has
    questions only.
    """
    corpus = load_benchmark(data.name, data.path, options=parse_options(data.name, data.options))
    if not corpus.forget:
        reason = "; ".join(corpus.notes) or "it has questions only"
        raise UserError(
            f"{data.name} must bring documents to forget: {reason}. (`rayunlearn evaluate` asks its"
            " questions of any model)"
        )
    return limit_retain(corpus, data.limit_retain)


def limit_retain(corpus: Corpus, n: int) -> Corpus:
    """The corpus with its first `n` retain documents; retain probes that are among those cut are
    not asked, and empty splits are gone. Notes tell it.
    """
    excluded = {d.doc_id for d in corpus.retain[n:]}
    asked = corpus.probes.get("retain", ())
    probes = corpus.probes | {"retain": tuple(d for d in asked if d.doc_id not in excluded)}
    kept = corpus.retain[:n]
    n_unasked = len(asked) - len(probes["retain"])
    return replace(
        corpus,
        retain=kept,
        probes={split: documents for split, documents in probes.items() if documents},
        notes=(*corpus.notes, *limit_notes(len(kept), len(corpus.retain), n_unasked)),
    )


def parse_options(name: str, text: str) -> dict[str, Value]:
    """`"size=05"` or `"task=scal,step=2"` -> keyword arguments of the loader of `name`, each of its
    default's type.

    A part without `=` belongs to the value before it (`targets=Ada Example,Bob Example`).
    `strict=false` goes to `load_benchmark`.
    """
    defaults = loader_defaults(name) | {"strict": True}
    options: dict[str, Value] = {}
    last = ""
    for part in filter(None, (part.strip() for part in text.split(","))):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            require(
                isinstance(options.get(last), str), "data.options takes name=value,name=value", part
            )
            options[last] = f"{options[last]},{part}"
            continue
        if option not in defaults:
            raise unknown_name(f"option of {name}", option, defaults)
        options[option], last = _as_kind(f"{name}.{option}", value, type(defaults[option])), option
    return options


def loader_defaults(name: str) -> dict[str, Value]:
    """The settings of a benchmark's loader with their defaults. Raises UserError for an unknown
    benchmark.
    """
    if name not in LOADERS:
        raise unknown_name("benchmark", name, LOADERS)
    row = LOADERS[name]
    defaults = {option.argument: option.default for option in options_of(row.function)}
    return defaults | (RULE_OPTIONS if row.has_rule else {})


def load_benchmark(
    name: str, path: str | Path, *, options: Mapping[str, Value] | None = None
) -> Corpus:
    """The benchmark from its folder (or Hub name: it is downloaded first); `options` are keyword
    arguments of its loader and `strict`.

    Raises UserError for an unknown benchmark or option, for missing tables and, unless `strict` is
    false, for a file that is not what upstream's was when the loader was written: numbers on it
    would not be comparable. `notes` tell it where strict is off.
    """
    chosen = _checked_options(name, options or {})
    strict = chosen.pop("strict", True)
    row = LOADERS[name]
    root = row.shipped if row.shipped and not str(path) else folder_of(str(path))
    folder = BenchmarkFolder(root, row.recorded)
    parts = row.function(folder, **chosen)
    changed = tuple(
        f"{r.table} is not the file that was recorded: {r.rows} rows, SHA-256 {r.sha256}"
        for r in folder.records
        if r.state == "changed"
    )
    if changed and strict:
        raise UserError(
            f"{name} in {path} changed: {'; '.join(changed)}. Load it with strict=false to go on"
            " with it as it is"
        )
    return Corpus(
        name=corpus_name(name),
        forget=parts.forget,
        retain=parts.retain,
        probes=parts.probes,
        extra_training={},
        rejected=tuple(folder.rejected),
        true_letters=parts.true_letters,
        shots=parts.shots,
        templates=parts.templates,
        files=tuple(folder.records),
        notes=(*dict.fromkeys((*parts.notes, *folder.notes)), *changed),
    )


def _checked_options(name: str, options: Mapping[str, Value]) -> dict[str, Value]:
    """The options of the loader itself, after all of them have been checked by name and those of a
    rule by value.
    """
    defaults = loader_defaults(name) | {"strict": True}
    for option in options:
        if option not in defaults:
            raise unknown_name(f"option of {name}", option, defaults)
    has_rule = LOADERS[name].has_rule
    if has_rule:
        rule_of(options)
    return {o: value for o, value in options.items() if not (has_rule and o in RULE_OPTIONS)}


def _as_kind(name: str, value: str, kind: type) -> Value:
    """Text as the type of an option's default."""
    if kind is bool:
        require(value.lower() in ("true", "false"), f"{name} must be true or false", value)
        return value.lower() == "true"
    if kind is int:
        require(value.lstrip("-").isdecimal(), f"{name} must be a whole number", value)
        return int(value)
    if kind is float:
        require(bool(NUMBER.fullmatch(value)), f"{name} must be a number", value)
        return float(value)
    return value


def _muse(folder: BenchmarkFolder, task: str, step: int, words: int, shots: int) -> BenchmarkParts:
    require(task in ("raw", "scal", "sust"), "task must be raw, scal or sust", task)
    require(1 <= step <= 4, "step must be in 1-4", step)
    questions = {side: folder.documents(f"knowmem/{side}_qa") for side in ("forget", "retain")}
    solved: dict[str, Documents] = dict.fromkeys(questions, ())
    if shots:
        solved = {side: folder.documents(f"knowmem/{side}_qa_icl")[:shots] for side in questions}
    probes = {
        side: tuple(with_shots(document, solved[side]) for document in documents)
        for side, documents in questions.items()
    }
    forget = "raw/forget" if task == "raw" else f"{task}/forget_{step}"
    return BenchmarkParts(
        forget=split_article(folder.documents(forget), words),
        retain=split_article(folder.documents("raw/retain1"), words),
        probes={
            **probes,
            "verbatim": folder.documents("verbmem/forget", {"prompt": "prompt", "answer": "gt"}),
            "members": folder.documents("privleak/forget"),
            "holdout": folder.documents("privleak/holdout"),
        },
        templates={"verbatim": "{prompt}"},
    )


def with_shots(document: Document, solved: Documents) -> Document:
    """The question after solved ones; the template "Question: {prompt}\\nAnswer:" stands around
    them all, so the first needs no "Question:".
    """
    shots = "".join(f"{d.prompt}\nAnswer: {d.answer}\n\nQuestion: " for d in solved)
    return Document(
        prompt=shots + document.prompt,
        answer=document.answer,
        wrong=document.wrong,
        topic=document.topic,
        group=document.group,
    )


def _wmdp(folder: BenchmarkFolder, subject: str, corpora: bool, documents: int) -> BenchmarkParts:
    require(documents >= 0, f"wmdp-{subject}.documents must be >= 0", documents)
    choices = folder.choices(folder.rows(f"wmdp-{subject}/test"), f"wmdp-{subject}")
    sides = {
        role: next((n for n in names if folder.has(n)), "")
        for role, names in zip(("forget", "retain"), CORPORA[subject], strict=True)
    }
    expected_files = GATED + ", ".join(f"{names[0]}.jsonl" for names in CORPORA[subject])
    if corpora and not all(sides.values()):
        raise UserError(expected_files)
    texts = {
        role: folder.documents(name, {"answer": "text"}) for role, name in sides.items() if corpora
    }
    probes = {"forget": tuple(c.document for c in choices)}
    true_letters = {c.document.doc_id: c.true_letter for c in choices}
    retain_questions = _add_mmlu_probes(folder, part="all")
    if retain_questions:
        probes["retain"] = retain_questions.probes["mmlu"]
        true_letters |= retain_questions.true_letters
    n_texts = len(texts.get("forget", ()))
    if documents and n_texts > documents:
        folder.notes.append(f"forget: the first {documents} of {n_texts} are kept (documents)")
    note = f"questions only (option corpora=true wants the texts). {expected_files}"
    return BenchmarkParts(
        forget=texts.get("forget", ())[: documents or None],
        retain=texts.get("retain", ()),
        probes=probes,
        true_letters=true_letters,
        notes=() if corpora else (note,),
    )


def _add_mmlu_probes(folder: BenchmarkFolder, *, part: str) -> BenchmarkParts | None:
    """MMLU from the folder `mmlu` in the benchmark's own, where there is one; its files are
    recorded with the benchmark's.
    """
    if not (folder.root / "mmlu").is_dir():
        return None
    mmlu_folder = BenchmarkFolder(folder.root / "mmlu", checksums.MMLU)
    questions = mmlu(mmlu_folder, part=part)
    folder.records.extend(mmlu_folder.records)
    folder.rejected.extend(mmlu_folder.rejected)
    return questions


def _subjects(
    folder: BenchmarkFolder, split: str, *, repeats: bool = False
) -> list[tuple[str, list[ChoiceQuestion]]]:
    """MMLU's questions by subject, from either layout."""
    if (folder.root / split).is_dir():
        return folder.letters(split, repeats=repeats)
    by_subject: dict[str, list[ChoiceQuestion]] = {}
    for choice in folder.choices(folder.rows(f"all/{split}"), repeats=repeats):
        by_subject.setdefault(choice.document.topic, []).append(choice)
    return sorted(by_subject.items())


def _unique_questions(
    folder: BenchmarkFolder, subjects: list[tuple[str, list[ChoiceQuestion]]]
) -> list[ChoiceQuestion]:
    """Every question once; one that two subjects ask counts to biology, where that is one of them,
    else to the first.
    """
    unique_questions: dict[str, ChoiceQuestion] = {}
    for subject, choices in sorted(
        subjects, key=lambda entry: (entry[0] not in BIOLOGY_SUBJECTS, entry[0])
    ):
        repeated = [c for c in choices if c.document.doc_id in unique_questions]
        folder.rejected.extend(
            Rejected(
                source=subject,
                row=-1,
                reason="another subject asks the same",
                excerpt=c.document.prompt[:200],
            )
            for c in repeated
        )
        unique_questions |= {
            c.document.doc_id: c for c in choices if c.document.doc_id not in unique_questions
        }
    return list(unique_questions.values())


def _about(documents: Documents, targets: tuple[str, ...]) -> Documents:
    """Documents about the targets, in a group for each."""
    return tuple(replace(d, group=d.topic) for d in documents if not targets or d.topic in targets)
