"""A trial that explains, on an untaught model of seconds: its rows, its paths, and the same made again for one that did not explain."""

from collections.abc import Iterator

import polars as pl
import pytest

from rayunlearn import worker
from rayunlearn.config import Trial, with_values
from rayunlearn.data.corpus import load_corpus
from rayunlearn.errors import UserError
from rayunlearn.explanation import between_trials, looked_into
from rayunlearn.finished import finished_trial
from rayunlearn.models.load import save_model
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.results.store import Run, open_run
from rayunlearn.train.teach import texts
from rayunlearn.trial import run_trial
from rayunlearn.workspace import identify, start_digest, validate, workspace_of

BASE = {"model.teach": False, "train.length": 3, "train.batch_size": 2, "train.learning_rate": 3e-3, "method.forget": "ga", "method.retain": "nll"}
ASKED = {"explain.documents": 2, "explain.path_points": 3, "explain.wording": "{words}.", "select.ratio": 0.1}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, dict[str, str]]]:
    """A run with the trials `full` (explains nothing) and `part` (explains, a tenth of the set), by name."""
    folder = tmp_path_factory.mktemp("explains")
    corpus = load_corpus(Trial().data)
    tokenizer = build_tokenizer(texts([*corpus.forget, *corpus.retain, *(d for part in corpus.probes.values() for d in part)], Trial().data.template))
    save_model(build_model("tiny", len(tokenizer), seed=0), tokenizer, folder / "model")
    ids = {}
    for name, values in (("full", BASE), ("part", BASE | ASKED)):
        trial = validate(with_values(Trial(), values | {"model.name": str(folder / "model")}))
        ids[name] = identify(trial)
        assert run_trial(trial, workspace_of(trial, folder / "runs" / "cache"), folder / "runs" / "test" / "1", "test", "1") == "complete"
    yield open_run(folder / "runs" / "test" / "1"), ids
    worker.loaded.cache_clear()
    start_digest.cache_clear()


def test_paths_end_in_the_models_they_join(ended: tuple[Run, dict[str, str]]) -> None:
    """At x 1 both paths are the trial itself, as measured; at x 0 one is the full-set trial, as it was measured in its own run."""
    run, ids = ended
    curves = run.curves.filter(pl.col("trial_id") == ids["part"], pl.col("metric") == "probability", pl.col("split") == "forget").collect()
    values = {(kind, x): value for kind, x, value in curves.select("kind", "x", "value").iter_rows()}
    measured = {
        name: run.evals.filter(pl.col("trial_id") == trial_id, pl.col("metric") == "probability", pl.col("split") == "forget")
        .filter(pl.col("attack") == "none", pl.col("stage") == "unlearned")
        .sort("step")
        .collect()["value"][-1]
        for name, trial_id in ids.items()
    }
    assert sorted({x for _, x in values}) == [0, 0.5, 1]
    for kind in ("mode_connectivity:full", "mode_connectivity:base"):
        assert values[kind, 1] == pytest.approx(measured["part"], rel=1e-5)
    assert values["mode_connectivity:full", 0] == pytest.approx(measured["full"], rel=1e-5)
    assert measured["full"] != pytest.approx(measured["part"], rel=1e-3)  # so that the ends can be told apart


def test_every_question_has_its_tokens_and_words_and_each_form_its_control(ended: tuple[Run, dict[str, str]]) -> None:
    run, ids = ended
    rows = run.attributions.filter(pl.col("trial_id") == ids["part"], pl.col("split") == "forget").collect()
    assert rows["doc_id"].n_unique() == 2 and set(rows["unit"]) == {"token", "word"}
    attacks = set(run.examples.filter(pl.col("trial_id") == ids["part"]).select("attack").unique().collect()["attack"])
    forms = {a.partition(":")[2] for a in attacks if a.startswith("emphasis:")}
    assert forms and all(f"emphasis_random:{form}" in attacks for form in forms)


def test_what_the_run_wrote_is_what_its_weights_made_again_say(ended: tuple[Run, dict[str, str]]) -> None:
    run, ids = ended
    rows = run.attributions.filter(pl.col("trial_id") == ids["part"], pl.col("split") == "forget").collect()
    doc = rows["doc_id"][0]
    ((found, split, before, after),) = looked_into(finished_trial(run.path, ids["part"], roles=()), doc)
    kept = rows.filter(pl.col("doc_id") == doc).sort("unit", "position")["contribution"].to_list()
    made = pl.DataFrame(after).sort("unit", "position")["contribution"].to_list()
    assert (found, split) == (doc, "forget") and made == pytest.approx(kept, abs=1e-5)
    assert pl.DataFrame(before).sort("unit", "position")["contribution"].to_list() != pytest.approx(kept, abs=1e-5)
    with pytest.raises(UserError, match="--doc must be a question of the trial's probes"):
        looked_into(finished_trial(run.path, ids["full"], roles=()), "no such")


def test_the_line_between_two_trials_has_them_at_its_ends(ended: tuple[Run, dict[str, str]]) -> None:
    run, ids = ended
    rows = between_trials(*(finished_trial(run.path, ids[name], roles=()) for name in ("full", "part")), points=3)
    curves = run.curves.filter(pl.col("trial_id") == ids["part"], pl.col("kind") == "mode_connectivity:full").collect()
    kept = {(x, s, m): v for x, s, m, v in curves.drop_nulls("value").select("x", "split", "metric", "value").iter_rows()}
    assert {(r["x"], r["split"], r["metric"]): r["value"] for r in rows if r["value"] is not None} == pytest.approx(kept, rel=1e-4)
