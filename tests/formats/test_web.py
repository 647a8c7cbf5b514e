"""The page: texts are read in JavaScript as in Python, and a real browser gives the answers of ONNX Runtime."""

from __future__ import annotations

import functools
import json
import random
import shutil
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import chromium
import pytest
from cells import trained
from tiny import BAD, GOOD, PLAIN, labelled
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hfadapt import load_adapted
from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.export.write import export
from hfadapt.formats.web import runtime
from hfadapt.formats.web.reading import reading, unreadable
from hfadapt.models.manifest import check_folder

WEB = registry.format("web")
SOURCES = Path(runtime.__file__).parent
NODE = shutil.which("node")
IDS = """
import fs from "fs";
import { WordPiece } from "./wordpiece.mjs";
const [tokenizer, reading, texts] = JSON.parse(fs.readFileSync(0));
const own = new WordPiece(tokenizer, reading);
console.log(JSON.stringify(texts.map((text) => own.encode(text))));
"""
DIFFICULT = [
    "", " ", "\n\t", "Hello, World!", "naïve café", "İstanbul", "東京タワー is big", "e\u0301", "ß ẞ ﬁ", "😀👩‍👩‍👧‍👦",
    "a\u0000b\u200bc\ufeffd\u00adx\ufffd", "[CLS] hi [SEP][MASK] [UNK] [PAD]", "[cls] [[CLS]] [CLS", "x" * 300,
    "Σίσυφος ΟΔΟΣ Σ", "a\u2028b\u2029c\u0085d\u001ce\u3000f", "don't $100 @you #tag ^^ `x` ~", "ǅ Ǆ ŀ", "가각힣",
    "\u1100\u1161", "हिन्दी ไทย العربية עִבְרִית", "\U0001d4d0\U0001d7ce²³½", "𠀀𫝀丽", "superbly goodgood badly",
]  # fmt: skip


def wordpiece(normalizer=None, sides=True, max_length=24):
    """A tokenizer like BERT's: letters, a few words, pieces of words."""
    letters = [chr(code) for code in (*range(33, 127), 0xE9, 0x3C3, 0x1EE5, 0x4E00, 0xFB01)]
    pieces = ["##good", "##ly", *(f"##{each}" for each in "abcdefghiklmnσ")]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PLAIN, *GOOD, *BAD, "good", *letters, *pieces]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=20))
    made.normalizer = normalizer or normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if sides:
        made.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, mask_token="[MASK]", model_max_length=max_length, **names)


def texts():
    """Hard cases, random ones, and every character that is one."""
    draw = random.Random(0)
    blocks = [(32, 126), (0, 0x2FF), (0x300, 0x1FFF), (0x2000, 0x33FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3)]
    blocks += [(0xF900, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x2FFFF)]
    words = [" the", " film", "good", "\n", "\u200d", "\ufe0f", "😀", "n't", "[SEP]", "\u0301", "É"]
    found = list(DIFFICULT)
    for _ in range(2000):
        parts = (
            draw.choice(words) if draw.random() < 0.3 else chr(draw.randint(*draw.choice(blocks))) for _ in "x" * 20
        )
        found.append("".join(parts))
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")]
    return found + ["a".join(known[start : start + 20]) for start in range(0, len(known), 20)]


def in_javascript(tokenizer, given, folder, max_length=24):
    """Ids of texts, as the page's own code finds them."""
    shutil.copyfile(SOURCES / "wordpiece.js", folder / "wordpiece.mjs")
    (folder / "ids.mjs").write_text(IDS)
    said = [json.loads(tokenizer.backend_tokenizer.to_str()), reading(tokenizer, max_length), given]
    done = subprocess.run([NODE, "ids.mjs"], cwd=folder, input=json.dumps(said), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(NODE is None, reason="no Node.js here")
@pytest.mark.parametrize("lowercase", [True, False])
def test_javascript_reads_texts_as_python_does(tmp_path, lowercase):
    tokenizer = wordpiece(normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase or None))
    given = texts()
    wanted = tokenizer(given, truncation=True, max_length=24)["input_ids"]
    found = in_javascript(tokenizer, given, tmp_path)
    assert [text for text, own, other in zip(given, wanted, found, strict=True) if own != other] == []
    assert max(map(len, wanted)) == 24
    # Half of a pair is no text in Python.
    assert in_javascript(tokenizer, ["a\ud800b"], tmp_path) == [tokenizer("a\ufffdb")["input_ids"]]


@pytest.mark.skipif(NODE is None, reason="no Node.js here")
def test_cut_from_the_left_and_without_special_tokens(tmp_path):
    tokenizer = wordpiece(sides=False)
    tokenizer.truncation_side = "left"
    given = ["good bad " * 30, "good", ""]
    wanted = tokenizer(given, truncation=True, max_length=24)["input_ids"]
    found = in_javascript(tokenizer, given, tmp_path)
    assert found[:2] == wanted[:2]
    assert found[2] == [tokenizer.cls_token_id], "no model reads nothing"


@pytest.mark.skipif(NODE is None, reason="no Node.js here")
def test_of_added_tokens_the_longest_is_found(tmp_path):
    tokenizer = wordpiece()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[SEP]+", "[SEP]+good", "]+"]})
    given = ["a[SEP]+good[SEP]+b[SEP]]+", "[SEP]+goo"]
    assert in_javascript(tokenizer, given, tmp_path) == tokenizer(given)["input_ids"]


def test_tokenizers_that_the_page_cannot_follow_are_refused(models):
    from transformers import AutoTokenizer

    assert unreadable(wordpiece()) is None
    assert "normalizer is none" in unreadable(AutoTokenizer.from_pretrained(models / "encoder"))
    assert "normalizer is NFC" in unreadable(wordpiece(normalizers.NFC()))
    odd = wordpiece()
    odd.add_tokens([AddedToken("<tag>", lstrip=True)])
    assert "'<tag>' is not looked for as it stands" in unreadable(odd)


@pytest.mark.parametrize(
    ("task", "fits"),
    [
        ("text-classification", True),
        *((name, False) for name in ("causal-lm", "image-classification", "text-regression")),
        ("multi-label-classification", False),
    ],
)
def test_the_page_classifies_texts(models, task, fits):
    from hfadapt.models.facts import load_config

    why = WEB.unfit(task, load_config(str(models / "encoder")).to_dict())
    assert (why is None) is fits
    assert fits or "the page tells which one class a text has" in why


# --- ONNX Runtime Web ------------------------------------------------------------------------------------------------


def test_a_folder_without_the_right_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(runtime.VARIABLE, str(tmp_path))
    with pytest.raises(RunError, match="missing") as missing:
        runtime.source()
    assert f"npm pack {runtime.PACKAGE}@{runtime.VERSION}" in str(missing.value)
    for name in runtime.FILES:
        (tmp_path / name).write_text("another version")
    with pytest.raises(RunError, match="not the expected one"):
        runtime.source()


def test_without_npm_the_fix_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HFADAPT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="cannot be fetched") as refused:
        runtime.source()
    assert "no npm" in str(refused.value)
    assert f"set {runtime.VARIABLE}" in str(refused.value)


# --- a page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ort():
    """The files of ONNX Runtime Web, where npm can fetch them."""
    try:
        return runtime.source()
    except RunError as error:
        pytest.skip(str(error.problems[0].got))


@pytest.fixture(scope="module")
def classifier(ort, models, tmp_path_factory):
    """A cell of a small base that reads as BERT does."""
    folder = tmp_path_factory.mktemp("web")
    shutil.copytree(models / "encoder", folder / "encoder")
    for path in folder.glob("encoder/*token*"):
        path.unlink()
    wordpiece(max_length=64).save_pretrained(folder / "encoder")
    return trained(folder, folder / "encoder", "text-classification", labelled(100), dtype="float32")


@pytest.fixture(scope="module")
def folders(classifier, tmp_path_factory):
    """Exported forms by name, each made when it is asked for."""
    place = tmp_path_factory.mktemp("pages")

    @functools.cache
    def exported(form):
        export(classifier, "web", place / form, variant=form, force=True)
        return place / form

    return exported


def test_the_folder_is_whole_and_names_no_other_place(folders, tmp_path):
    folder = folders("float32")
    for name in WEB.needed(False):
        assert (folder / name).is_file(), name
    text = "".join((folder / name).read_text() for name in ("index.html", "app.js", "classifier.js", "wordpiece.js"))
    assert "@" not in text, "every mark has its word"
    assert "https:" not in text
    assert "connect-src 'self'" in text
    assert "python -m http.server" in (folder / "README.md").read_text()
    check_folder(folder)
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    (changed / "ort" / "ort.wasm.min.mjs").write_text("fetch('//elsewhere')")
    with pytest.raises(RunError, match=r"has been changed(.|\n)*export it again: hfadapt export CELL --format web"):
        check_folder(changed)


def test_an_archive_and_a_folder_give_the_same_files(ort, tmp_path, monkeypatch):
    if not ort.is_file():
        pytest.skip("the files come from a folder")
    with tarfile.open(ort) as archive:
        archive.extractall(
            tmp_path, [archive.getmember(f"package/dist/{name}") for name in runtime.FILES], filter="data"
        )
    monkeypatch.setenv(runtime.VARIABLE, str(tmp_path / "package" / "dist"))
    (tmp_path / "placed").mkdir()
    runtime.place(tmp_path / "placed")
    assert all(runtime.is_own(tmp_path / "placed" / name) for name in runtime.FILES)
    assert sum(path.stat().st_size for path in (tmp_path / "placed").iterdir()) == runtime.BYTES


def same_answers(page, folder, given, tolerance):
    """Asks the page's model and Python's, row by row, and compares."""
    wanted = [load_adapted(folder).predict([text])[0] for text in given]
    found = page.run(f"hfadapt.classify({json.dumps(given)})")
    assert [each["label"] for each in found] == [each.label for each in wanted]
    assert [each["probability"] for each in found] == pytest.approx([e.probability for e in wanted], abs=tolerance)
    assert all(sum(each["probabilities"].values()) == pytest.approx(1) for each in found)


@pytest.mark.slow
@pytest.mark.skipif(chromium.BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize(("form", "tolerance"), [("float32", 1e-5), ("int8-dynamic", 0.05)])
def test_a_browser_answers_as_onnx_runtime_does(classifier, folders, tmp_path, form, tolerance):
    folder = folders(form)
    rows = [*classifier.read_split("test"), *classifier.read_split("train")]
    given = [str(row["text"]) for row in rows] + [text for text in DIFFICULT if text]
    with chromium.served(folder) as address, chromium.page(tmp_path) as page:
        page.open(address)
        same_answers(page, folder, given, tolerance)
        assert page.faults == []
        assert all(each.startswith(address) or each == "data:," for each in page.requests)


@pytest.mark.slow
@pytest.mark.skipif(chromium.BROWSER is None, reason="no Chromium here")
def test_a_reader_types_clicks_and_reads(folders, tmp_path):
    folder = folders("float32")
    with chromium.served(folder) as address, chromium.page(tmp_path) as page:
        page.open(address)
        page.until("!document.querySelector('button').disabled")
        page.click("button")
        page.until("document.querySelector('#state').textContent.startsWith('Write a text')")
        page.click("textarea")
        page.write(f"{GOOD[0]} {GOOD[1]}\n\n{BAD[0]} <b>{BAD[1]}</b>")
        page.click("button")
        page.until("document.querySelector('#state').textContent === '2 of 2 lines are answered.'")
        labels = page.run("[...document.querySelectorAll('#answers strong')].map((each) => each.textContent)")
        assert labels == [
            e.label for e in load_adapted(folder).predict([f"{GOOD[0]} {GOOD[1]}", f"{BAD[0]} <b>{BAD[1]}</b>"])
        ]
        assert page.run("document.querySelectorAll('#answers b').length") == 0, "texts are no HTML"
        assert page.run("document.querySelectorAll('meter').length") == 4


@pytest.mark.slow
@pytest.mark.skipif(chromium.BROWSER is None, reason="no Chromium here")
def test_what_is_missing_is_told_in_the_page(folders, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(folders("float32"), folder)
    (folder / "model.onnx").unlink()
    with chromium.served(folder) as address, chromium.page(tmp_path) as page:
        page.open(address)
        page.until("document.querySelector('#state').className === 'error'")
        assert "model.onnx cannot be read: 404" in page.run("document.querySelector('#state').textContent")
    with chromium.page(tmp_path) as page:
        page.open((folder / "index.html").as_uri())
        assert "needs a server" in page.run("document.querySelector('#state').textContent")
