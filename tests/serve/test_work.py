"""What a server asks a bank of adapters for."""

from __future__ import annotations

import pytest
from tiny import NO_CHECKS, command, questions, recipe_fields, write_recipe, write_rows

from hfadapt import load_adapted, load_bank
from hfadapt.serve.batching import Job, Limits
from hfadapt.serve.work import Answering, Asking


def test_rows_of_two_texts_are_scored_by_themselves_through_their_own_adapters(models, tmp_path):
    for seed, domain in enumerate(("one", "two")):
        write_rows(tmp_path / f"{domain}.jsonl", questions(60, seed=seed))
    domains = {domain: {"source": f"{domain}.jsonl"} for domain in ("one", "two")}
    train = {"max_steps": 8, "learning_rate": 2e-2, "batch_rows": 8}
    fields = recipe_fields(models / "encoder", "reranking", domains, train=train, dtype="float32", evaluate=NO_CHECKS)
    done = command("train", write_recipe(tmp_path / "tiny.yaml", fields).name, folder=tmp_path)
    assert done.code == 0, done.err
    run, rows = tmp_path / "runs/tiny", questions(3, seed=5)
    alone = {}
    for domain in ("one", "two"):
        adapted = load_adapted(run, domain)
        alone[domain] = [adapted.predict([row["anchor"], row["positive"]])[1].number for row in rows]
    assert alone["one"] != pytest.approx(alone["two"], abs=1e-4)
    works = Answering(load_bank(run), Limits())
    for domain, wanted in alone.items():
        job = Job("answer", Asking([domain] * 3, rows), 3, alone=True)
        job.tokens = works.measure(job.asked)
        works.do([job])
        assert [answer.number for answer in job.done.result()] == pytest.approx(wanted, abs=1e-5)
