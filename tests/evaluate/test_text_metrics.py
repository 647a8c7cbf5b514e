"""Text metrics equal sacrebleu 2.6.0 and rouge-score 0.1.2, as golden numbers and on random texts."""

from __future__ import annotations

import random

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from hfadapt.evaluate.general_text import paragraphs
from hfadapt.evaluate.metrics.rows import METRICS, compare
from hfadapt.evaluate.metrics.text import Texts

PREDICTIONS = (
    "The cat sat on the mat, quietly.",
    "no answer",
    "It costs 3.50 - 4.75 EUR (about $5) &amp; more",
    "",
    "a b c d e f g",
    "the quick brown fox jumps over the lazy dog today",
)
REFERENCES = (
    "The cat was sitting quietly on the mat.",
    "A short answer",
    "It costs 3.50-4.75 EUR (about $5) & more",
    "empty",
    "a b c d x f g",
    "The quick brown fox jumped over the lazy dog.",
)


def value(name, predictions, references):
    metric = METRICS[name]
    texts = Texts(range(len(predictions)), predictions, references)
    return float(metric.value(metric.statistics(texts).sum(0)))


def test_the_corpus_equals_the_reference_libraries():
    assert value("bleu", PREDICTIONS, REFERENCES) == pytest.approx(57.702154728952586)
    assert value("chrf", PREDICTIONS, REFERENCES) == pytest.approx(68.63202355143821)
    rouge = [2 / 3, 0.4, 0.9523809523809523, 0, 0.8571428571428571, 0.8421052631578948]
    assert value("rouge_l", PREDICTIONS, REFERENCES) == pytest.approx(np.mean(rouge))


@pytest.mark.parametrize(
    ("row", "bleu", "chrf"),
    [
        (0, 24.274588585366175, 48.9443324540846),
        (1, 0.0, 39.31884313539169),
        (2, 100.0, 89.7054202815944),
        (3, 0.0, 0.0),
        (4, 48.892302243490086, 36.23015873015873),
        (5, 37.99178428257963, 79.92975252855996),
    ],
)
def test_single_rows_equal_sacrebleu(row, bleu, chrf):
    assert value("bleu", PREDICTIONS[row : row + 1], REFERENCES[row : row + 1]) == pytest.approx(bleu)
    assert value("chrf", PREDICTIONS[row : row + 1], REFERENCES[row : row + 1]) == pytest.approx(chrf)


def test_random_corpora_equal_the_reference_libraries():
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    draw = random.Random(1)
    for _ in range(20):
        references = [
            " ".join(text.split()[: draw.choice([1, 2, 3, 9, 30])]) for text in draw.sample(list(paragraphs()), 8)
        ]
        predictions = []
        for text in references:
            words = [word for word in text.split() if draw.random() > 0.2]
            if draw.random() < 0.3:
                draw.shuffle(words)
            predictions.append(" ".join(words))
        expected = {
            "bleu": sacrebleu.corpus_bleu(predictions, [references]).score,
            "chrf": sacrebleu.corpus_chrf(predictions, [references]).score,
            "rouge_l": np.mean(
                [scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)]
            ),
        }
        for name, number in expected.items():
            assert value(name, predictions, references) == pytest.approx(number), (name, predictions)


def test_exact_match_ignores_white_space_only():
    assert value("exact_match", ["a  b\n", "a B", "x"], ["a b", "a b", "x"]) == pytest.approx(2 / 3)


def test_words_of_other_scripts_count():
    assert value("rouge_l", ["Это хороший фильм"], ["это плохой фильм"]) == pytest.approx(2 / 3)


def test_the_bootstrap_of_a_corpus_metric_is_that_of_resampled_corpora():
    """The weights of a sample applied to the summed statistics give the metric of the resampled corpus itself."""
    rows = len(PREDICTIONS)
    weights = np.random.default_rng(3).multinomial(rows, np.full(rows, 1 / rows), size=20)
    texts = Texts(range(rows), PREDICTIONS, REFERENCES)
    for name in ("bleu", "chrf", "rouge_l"):
        metric = METRICS[name]
        fast = metric.value(weights @ metric.statistics(texts))
        for line, drawn in zip(weights, fast, strict=True):
            order = np.repeat(np.arange(rows), line)
            slow = value(name, [PREDICTIONS[i] for i in order], [REFERENCES[i] for i in order])
            assert drawn == pytest.approx(slow)


def test_better_texts_have_an_interval_above_zero():
    draw = random.Random(2)
    references = [" ".join(text.split()[:12]) for text in paragraphs()]
    worse = [" ".join(draw.sample(text.split(), 8)) for text in references]
    rows = range(len(references))
    for name in ("bleu", "chrf", "rouge_l", "exact_match"):
        metric = compare(
            name,
            Texts(rows, worse, references),
            Texts(rows, references, references),
            resamples=300,
            confidence=0.95,
            seed=1,
        )
        assert 0 < metric.low <= metric.delta <= metric.high
        assert metric.rows == len(references)
        assert metric.adapter == pytest.approx(100 if name in ("bleu", "chrf") else 1)
