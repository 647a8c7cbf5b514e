"""The card: golden examples, tracing, metadata, the executed snippet, licences, redaction.

`cards/examples/` holds two finished cards beside the records they were made from. After a wanted change of the card:

    python tests/renew_golden_cards.py --only-cards

and to make the records anew, from real runs:  python tests/renew_golden_cards.py
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from huggingface_hub import metadata_load

from hfadapt.card.build import USER_BEGIN, USER_END, build_card, render_card
from hfadapt.card.check import check_card
from hfadapt.card.facts import Facts, Records, escape, pointer, public_name, redact, shorten, untraced
from hfadapt.card.licenses import adapter_license, duties, hub_id, hub_ids
from hfadapt.card.snippet import example_row, snippet_text
from hfadapt.core import resources
from hfadapt.core.errors import RunError
from hfadapt.run_folder import Cell

EXAMPLES = Path(__file__).parents[2] / "cards" / "examples"
NAMES = ("text-classification", "causal-lm")
MADE = ("README.md", "card.json", "loss.svg")


@pytest.fixture(params=NAMES)
def cell(request: pytest.FixtureRequest, tmp_path: Path) -> Cell:
    shutil.copytree(EXAMPLES / request.param, tmp_path / "cell")
    return Cell(tmp_path / "cell")


@pytest.fixture
def classifier(tmp_path: Path) -> Cell:
    shutil.copytree(EXAMPLES / "text-classification", tmp_path / "cell")
    return Cell(tmp_path / "cell")


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def body(text: str) -> str:
    """The card's own text: no metadata, no code, nothing of the user's."""
    return re.sub(r"```.*?```", "", text.split(USER_BEGIN)[0].split("---\n", 2)[2], flags=re.S)


# --- golden cards ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_golden_cards_are_what_the_records_give(name: str) -> None:
    folder = EXAMPLES / name
    card = render_card(folder)
    assert card.readme == (folder / "README.md").read_text(encoding="utf-8")
    assert card.chart == (folder / "loss.svg").read_text(encoding="utf-8")
    assert check_card(folder) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_the_golden_cards_is_in_a_fact(name: str) -> None:
    folder = EXAMPLES / name
    card = render_card(folder)
    left = body(card.readme)
    record = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    for shown in sorted({fact["shown"] for fact in record["facts"]}, key=len, reverse=True):
        left = re.sub(rf"(?<!\w){re.escape(shown)}(?!\w)", " ", left)
    # What remains are names (of the base, of files and settings) and the year of a citation.
    words = [word for word in re.findall(r"\S*\d\S*", left) if not re.search(r"[A-Za-z]", word)]
    assert words == ["2025)."]


def test_the_examples_can_be_taken_from_another_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from renew_golden_cards import take

    source = tmp_path / "runs" / "cell"
    shutil.copytree(EXAMPLES / "text-classification", source)
    (source / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (source / "drift.json").unlink(missing_ok=True)
    take(source, tmp_path / "taken")
    assert check_card(tmp_path / "taken") == []
    assert not (tmp_path / "taken" / "adapter" / "adapter_model.safetensors").exists()
    assert "drift.json is not there" in capsys.readouterr().out


def test_a_card_shows_its_snippet_and_not_all_its_values(cell: Cell) -> None:
    record = build_card(cell, execute=False)
    shown = str(record)
    assert record.snippet.strip() in shown
    assert f"{len(record.facts):,} values" in shown
    assert len(shown) < len(record.snippet) + 300


def test_the_same_records_give_the_same_bytes(cell: Cell) -> None:
    before = {name: (cell.folder / name).read_bytes() for name in MADE}
    for name in MADE:
        if name != "card.json":  # it holds what the snippet printed
            (cell.folder / name).unlink()
    build_card(cell, execute=False)
    assert {name: (cell.folder / name).read_bytes() for name in MADE} == before


def test_tables_and_headings_stand_alone(cell: Cell) -> None:
    lines = (cell.folder / "README.md").read_text(encoding="utf-8").splitlines()
    for above, line in itertools.pairwise(lines):
        if line.startswith(("## ", "|")):
            assert not above or above.startswith("|"), (above, line)
    rows = [line for line in lines if line.startswith("|---")]
    assert len(rows) > 8


def test_tables_have_as_many_cells_as_columns(cell: Cell) -> None:
    columns = None
    for line in body((cell.folder / "README.md").read_text(encoding="utf-8")).splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert columns in (None, cells), line
        columns = cells


# --- tracing ---------------------------------------------------------------------------------------------------------


def test_a_number_without_a_record_stops_the_card(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    real = jinja2.FileSystemLoader.get_source

    def more(loader: jinja2.FileSystemLoader, environment: jinja2.Environment, name: str) -> Any:
        source, *rest = real(loader, environment, name)
        return source.replace("## Limits", "## Limits\n\nBetter by 12 %.", 1), *rest

    monkeypatch.setattr(jinja2.FileSystemLoader, "get_source", more)
    monkeypatch.setattr(resources, "templates", resources.templates.__wrapped__)  # none that is compiled already
    with pytest.raises(RunError, match="in no record"):
        build_card(cell, execute=False)


def test_untraced_leaves_marked_values_names_and_code_alone() -> None:
    text = f"sha256 {Facts.cited('12')} of macro_f1\n```\nx[0]\n```\nten and 7"
    assert untraced(text) == ["ten and 7"]


def test_a_value_that_is_not_a_number_stops_the_card(classifier: Cell) -> None:
    path = classifier.folder / "train.json"
    path.write_text(re.sub(r'"tokens_per_second": [\d.]+', '"tokens_per_second": NaN', path.read_text()))
    with pytest.raises(RunError, match="not a number"):
        build_card(classifier, execute=False)


def test_a_value_of_another_kind_stops_the_card(classifier: Cell) -> None:
    path = classifier.folder / "evaluation.json"
    path.write_text(re.sub(r'"rows": \d+', '"rows": "some"', path.read_text(), count=1))
    with pytest.raises(RunError, match="a value of another kind"):
        build_card(classifier, execute=False)


@pytest.mark.parametrize("name", ["train.json", "evaluation.json", "lock.yaml", "data.json", "adapter/hfadapt.json"])
def test_a_missing_record_is_named(classifier: Cell, name: str) -> None:
    (classifier.folder / name).unlink()
    with pytest.raises(RunError, match=re.escape(name)):
        build_card(classifier, execute=False)


def test_pointers_escape_names() -> None:
    records = Records(Path(), {"x.json": {"a/b": {"c~d": [1, {"e": 5}]}}})
    assert records.value("x.json#" + pointer("a/b", "c~d", 1, "e")) == 5
    with pytest.raises(LookupError):
        records.value("x.json#/nothing")


def test_prompts_are_quoted_without_their_template() -> None:
    rows = [{"prompt": f"Text: {text}\nSentiment (good or bad):"} for text in ("what a day", "when was it?")]
    facts = Facts(Records(Path(), {"rows.json": rows}))
    assert "Sentiment" not in facts("rows.json#/0/prompt", "quote", "differing")
    assert "what a day" in facts("rows.json#/0/prompt", "quote", "differing")


# --- metadata --------------------------------------------------------------------------------------------------------


def test_metadata_is_read_by_the_hub_client(cell: Cell) -> None:
    from huggingface_hub import ModelCard

    text = (cell.folder / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data
    found = metadata_load(cell.folder / "README.md")
    assert found == yaml.safe_load(yaml.safe_dump(found))
    assert data.base_model == found["base_model"]
    assert found["base_model_relation"] == "adapter"
    assert found["library_name"] == "peft"
    assert found["license"] == "apache-2.0"
    assert data.eval_results is not None
    named = {result.metric_name for result in data.eval_results}
    assert any("base" in str(name) for name in named)
    assert any("adapter" in str(name) for name in named)
    assert all(type(result.metric_value) is float for result in data.eval_results)


def test_norwegian_stays_a_language(classifier: Cell) -> None:
    data = json.loads((classifier.folder / "data.json").read_text())
    data["sources"][0]["language"] = "no"
    change(classifier.folder / "data.json", **data)
    build_card(classifier, execute=False)
    assert metadata_load(classifier.folder / "README.md")["language"] == ["no"]


def test_full_fine_tuning_is_a_finetune_for_transformers(classifier: Cell) -> None:
    path = classifier.folder / "lock.yaml"
    path.write_text(path.read_text().replace("method: lora", "method: full"))
    metadata = build_card(classifier, execute=False).metadata
    assert (metadata["base_model_relation"], metadata["library_name"]) == ("finetune", "transformers")
    assert "PeftModel" not in (classifier.folder / "README.md").read_text()


def test_a_sample_that_the_hub_does_not_have_goes_by_its_name(classifier: Cell) -> None:
    """A name with a colon is none for the Hub, and such an adapter could not even be published into a folder."""
    path = classifier.folder / "lock.yaml"
    path.write_text(path.read_text().replace("sample:minilm-l6", "sample:efficientnet-lite0"))
    change(classifier.folder / "train.json", model_hub_id=None)
    assert build_card(classifier, execute=False).metadata["base_model"] == "efficientnet-lite0"


def test_local_places_stay_out_of_the_card(classifier: Cell) -> None:
    path = classifier.folder / "lock.yaml"
    path.write_text(path.read_text().replace("sample:minilm-l6", "/home/ada/models/mini"))
    change(classifier.folder / "train.json", model_hub_id=None, model_license=None)
    data = json.loads((classifier.folder / "data.json").read_text())
    data["sources"][0] |= {"source": "/home/ada/data/tweets.csv", "license": None, "url": None}
    change(classifier.folder / "data.json", **data)
    build_card(classifier, execute=False)
    text = (classifier.folder / "README.md").read_text()
    assert "/home" not in text
    assert "tweets.csv" in text
    metadata = metadata_load(classifier.folder / "README.md")
    assert metadata["base_model"] == "mini"
    assert metadata["license"] == "other"
    assert metadata["license_name"] == "unknown"
    assert "The licence of the base is not stated." in text
    assert "/home" not in (classifier.folder / "card.json").read_text()


@pytest.mark.parametrize(
    ("base", "data"), [("apache-2.0", "cc-by-sa-4.0"), ("llama3.1", "cc-by-nc-4.0"), ("apache-2.0", "terms of 2021")]
)
def test_licenses_with_numbers_in_their_names_have_a_card(classifier: Cell, base: str, data: str) -> None:
    content = json.loads((classifier.folder / "data.json").read_text())
    content["sources"][0]["license"] = data
    change(classifier.folder / "data.json", **content)
    change(classifier.folder / "train.json", model_license=base)
    build_card(classifier, execute=False)
    said = (classifier.folder / "README.md").read_text().split("## Licence")[1].split("## Training")[0]
    assert data in said


# --- the user's text -------------------------------------------------------------------------------------------------


def test_user_text_survives(cell: Cell) -> None:
    readme = cell.folder / "README.md"
    mine = "\n## Intended use\n\nOnly for 3 demos.\n\n\n\nEnd.  \n"
    readme.write_text(re.sub(f"{USER_BEGIN}.*{USER_END}", USER_BEGIN + mine + USER_END, readme.read_text(), flags=re.S))
    build_card(cell, execute=False)
    build_card(cell, execute=False)
    assert f"{USER_BEGIN}{mine}{USER_END}" in readme.read_text()
    assert check_card(cell.folder) == []


# --- the snippet -----------------------------------------------------------------------------------------------------


def test_the_example_is_short_right_and_free_of_personal_data(classifier: Cell) -> None:
    records = Records(classifier.folder)
    number = example_row(records)
    text, said = records.value(f"data/test.parquet#/{number}/text"), records.value(f"predictions.parquet#/{number}")
    assert redact(text) == text
    assert said["gold"] == said["adapter"]
    assert len(text) <= 160


@pytest.mark.parametrize(
    ("form", "row", "wanted"),
    [
        ("messages", {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}, "[{"),
        ("text", {"text": "one two three four five six seven eight nine"}, '"one two three four five six seven eight"'),
        ("completion", {"prompt": 'say "a"', "completion": " a"}, '"say \\"a\\""'),
    ],
)
def test_snippets_of_every_form_are_python(form: str, row: dict, wanted: str, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "causal-lm", tmp_path / "cell")
    records = Records(tmp_path / "cell")
    records.given |= {"data/test.parquet": [row], "predictions.parquet": [{}]}
    records.file("data.json")["form"] = form
    code = snippet_text(Facts(records)).replace("\x02", "").replace("\x03", "")
    compile(code, "snippet", "exec")
    assert wanted in code
    assert "yo" not in code.split("messages")[-1] or form != "messages"


def test_the_snippet_quantises_as_training_did() -> None:
    code = (EXAMPLES / "causal-lm" / "README.md").read_text(encoding="utf-8")
    assert 'bnb_4bit_quant_type="nf4",' in code
    assert "bnb_4bit_compute_dtype=torch.bfloat16," in code
    assert "load_in_4bit=True," in code


@pytest.mark.parametrize("odd", [False, True])
def test_the_snippet_does_not_have_the_base_packed_where_that_fails(odd: bool, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "causal-lm", tmp_path / "cell")
    records = Records(tmp_path / "cell")
    records.given |= {"data/test.parquet": [{"prompt": "a", "completion": " b"}], "predictions.parquet": [{}]}
    records.file("train.json")["odd_sizes"] = odd
    code = snippet_text(Facts(records)).replace("\x02", "").replace("\x03", "")
    compile(code, "snippet", "exec")
    assert ("support_avx512bf16_for_cpu = False" in code) is odd


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of a few thousand weights with a LoRA adapter on it, as a finished cell whose base is a local folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("tiny")
    folder, base = root / "cell", root / "tiny-base"
    shutil.copytree(EXAMPLES / "text-classification", folder)
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "good", "bad", "great", "film", "day"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config.num_labels = 3
    model = BertForSequenceClassification(config)
    model.save_pretrained(base)
    lora = LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], task_type="SEQ_CLS")
    lora.base_model_name_or_path = "tiny-base"
    get_peft_model(model, lora).save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    lock = (folder / "lock.yaml").read_text().replace("sample:minilm-l6", str(base))
    (folder / "lock.yaml").write_text(lock)
    change(folder / "train.json", model_hub_id=None)
    return folder


def answers(folder: Path, said: str) -> None:
    """Lets the evaluation say that the adapter answered `said` for every row."""
    import pyarrow
    from pyarrow import parquet

    rows = parquet.read_table(folder / "predictions.parquet").to_pylist()
    parquet.write_table(
        pyarrow.Table.from_pylist([row | {"adapter": said, "gold": said} for row in rows]),
        folder / "predictions.parquet",
    )


def test_the_snippet_is_run_and_must_agree_with_the_evaluation(tiny: Path) -> None:
    answers(tiny, "something else")
    with pytest.raises(RunError, match="does not say what the evaluation did") as error:
        build_card(Cell(tiny))
    label = str(error.value.problems[0].got).strip("'").split(" ")[0]
    assert label in ("negative", "neutral", "positive")
    answers(tiny, label)
    output = build_card(Cell(tiny)).output
    assert output is not None
    assert output.startswith(f"{label} (0.")
    text = (tiny / "README.md").read_text()
    assert f"```text\n{output}\n```" in text
    assert 'base = "tiny-base"  # the folder of the base' in text
    assert str(tiny.parent) not in text
    assert (tiny / "adapter" / "README.md").read_text() == text
    assert check_card(tiny) == []


def test_a_failing_snippet_fails_the_card(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "cell")
    (tmp_path / "cell" / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "cell" / "README.md").unlink(missing_ok=True)
    with pytest.raises(RunError, match="loading snippet fails"):
        build_card(Cell(tmp_path / "cell"))
    assert not (tmp_path / "cell" / "README.md").exists()


# --- licences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "data", "wanted", "clear"),
    [
        ("apache-2.0", "mit", "apache-2.0", True),
        ("mit", "cc0-1.0", "mit", True),
        ("Apache 2.0", "BSD-3-Clause", "apache-2.0", True),
        ("apache-2.0", "cc-by-nc-4.0", "cc-by-nc-4.0", True),
        ("apache-2.0", "cc-by-sa-4.0", "cc-by-sa-4.0", True),
        ("llama3.1", "mit", "llama3.1", True),
        ("llama3.1", "cc-by-nc-4.0", "other", False),
        ("gpl-3.0", "cc-by-sa-4.0", "other", False),
        ("apache-2.0", "cc-by-nd-4.0", "cc-by-nd-4.0", False),
        ("apache-2.0", None, "other", False),
        (None, "mit", "other", False),
        ("apache-2.0", "my own terms", "other", False),
        ("cc", "mit", "other", False),
    ],
)
def test_the_license_keeps_every_duty(base: str | None, data: str | None, wanted: str, clear: bool) -> None:
    license = adapter_license(base, {"rows.csv": data})
    assert (license.id, license.clear) == (wanted, clear)
    assert (license.name is None) == (wanted != "other")
    assert license.why
    if wanted != "other":
        kept = duties(wanted)
        assert kept is not None
        for one in (base, data):
            known = hub_id(one)
            assert known is not None
            assert kept >= (duties(known) or frozenset())


def test_the_license_table_names_no_id_twice() -> None:
    assert len(hub_ids()) > 75
    assert {"apache-2.0", "other", "unknown", "llama3.3"} <= hub_ids()


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mail ada@example.org now", "mail [e-mail] now"),
        ("see https://t.co/x?y=1 and www.a.b/c", "see [link] and [link]"),
        ("bit.ly/abc rocks", "[link] rocks"),
        ("call +49 (30) 1234-5678!", "call [number]!"),
        ("@ada_l thanks", "[user] thanks"),
        ("key hf_abcdefghijklmnop", "key [secret]"),
        ("host 10.0.0.12", "host [address]"),
        ("5 of 10 in 2024: 3.5 stars", "5 of 10 in 2024: 3.5 stars"),
    ],
)
def test_personal_data_is_replaced(text: str, wanted: str) -> None:
    assert redact(text) == wanted


def test_quotes_cannot_write_markdown() -> None:
    assert escape("<img src=x> | [a](b) `c` *d*") == "&lt;img src=x&gt; \\| \\[a\\](b) \\`c\\` \\*d\\*"
    assert len(shorten("word " * 100)) <= 160
    assert public_name("/home/ada/x.csv") == "x.csv"
    assert public_name("C:\\data\\x.csv") == "x.csv"
    assert public_name("owner/name@main") == "owner/name@main"
    assert public_name("../x.csv") == "x.csv"
