"""Plain text is read line by line only where lines are texts; what was made of it is said."""

import textwrap

import pytest

from hfadapt.core.errors import DataError
from hfadapt.files import Doubt, Read, folders, reading

WORDS = ("red", "blue", "small", "large", "old", "new", "round", "flat", "window", "market")


def sentence(number, words=11):
    return " ".join(WORDS[(number * 7 + at * at) % 10] for at in range(words)).capitalize() + "."


PARAGRAPHS = [" ".join(sentence(5 * number + at) for at in range(5)) for number in range(8)]
BROKEN = [textwrap.fill(each, 72) for each in PARAGRAPHS]


def read(folder, content, name="a.txt"):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    found = [*reading.rows(path)]
    rows = [item for item in found if isinstance(item, Read)]
    return [each.code for each in found if isinstance(each, Doubt)], [each.values["text"] for each in rows], rows


def test_paragraphs_are_put_together_where_lines_were_broken_to_a_width(tmp_path):
    codes, texts, rows = read(tmp_path, "\n\n".join(BROKEN) + "\n")
    assert (codes, texts) == (["lines-joined"], PARAGRAPHS)
    assert [row.row for row in rows] == [*range(8)]
    assert rows[1].line == BROKEN[0].count("\n") + 3


def test_words_that_a_line_breaks_and_lines_that_end_early_stay_what_they_are(tmp_path):
    hyphen = "Its far too long words are of the kind that nobody would write as well-\nmeant ones in a market."
    verse = "A rose is a rose\nis a rose."
    codes, texts, _ = read(tmp_path, "\n\n".join([*BROKEN, hyphen, verse]))
    assert codes == ["lines-joined"]
    assert texts[-2:] == [hyphen.replace("-\n", "-"), verse]


def test_without_empty_lines_between_paragraphs_it_is_said_and_the_fix_is_followed(tmp_path):
    codes, texts, _ = read(tmp_path, "\n".join(BROKEN))
    assert codes == ["lines-broken"]
    assert len(texts) == sum(each.count("\n") + 1 for each in BROKEN)
    assert read(tmp_path, "\n".join(PARAGRAPHS))[:2] == ([], PARAGRAPHS)


@pytest.mark.parametrize(
    "lines",
    [
        PARAGRAPHS,
        [sentence(number) for number in range(60)],
        [sentence(number, 4 + number % 9)[:-1] for number in range(60)],
        ["".join(WORDS[(number + at) % 10] for at in range(9))[:60] for number in range(60)],
        [" ".join(f"{(number * 37 + at) % 97 / 7:.9f}" for at in range(6)) for number in range(60)],
        ["一二三四五六七八九十" * 4] * 60,
        ["", "one", "", "two"],
    ],
)
def test_lines_that_are_texts_stay_texts(tmp_path, lines):
    codes, texts, _ = read(tmp_path, "\n".join(lines))
    assert (codes, texts) == ([], lines)


def test_texts_with_a_mark_between_them(tmp_path):
    content = "One line.\n\t-- Somebody\n%\nTwo,\n\nand more.\n%\n%\nThree.\n%\n"
    codes, texts, rows = read(tmp_path, content)
    assert (codes, texts) == (["text-divided"], ["One line.\n\t-- Somebody", "Two,\n\nand more.", "Three."])
    assert [row.line for row in rows] == [1, 4, 9]
    assert read(tmp_path, "about\n%\na share\n")[0] == []


def test_entities_of_brat_are_read_with_their_lines(tmp_path):
    (tmp_path / "a.ann").write_text(
        "T1\tPER 0 4\tAnna\nR1\tknows Arg1:T1\nT2\tLOC 14 17;18 22\tNew York\nT3\tPER 24 27\tBob\n"
    )
    codes, _, rows = read(tmp_path, "Anna lives in New York.\nBob too.\n\nNobody.\n")
    assert codes == ["annotations-read"]
    assert [(row.row, row.line, row.values["spans"]) for row in rows] == [
        (0, 1, [[0, 4, "PER"], [14, 17, "LOC"], [18, 22, "LOC"]]),
        (1, 2, [[0, 3, "PER"]]),
        (3, 4, []),
    ]


def test_entities_of_another_text_are_refused(tmp_path):
    (tmp_path / "a.ann").write_text("T1\tPER 1 5\tAnna\n")
    with pytest.raises(DataError, match="do not fit the text") as caught:
        read(tmp_path, "Anna lives.\n")
    assert "'nna '" in str(caught.value)
    (tmp_path / "a.ann").unlink()
    assert read(tmp_path, "Anna lives.\n")[1] == ["Anna lives."]


CONLL = (
    "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\nGerman JJ B-NP B-MISC\ncall NN I-NP O\n. . O O\n\n"
)
CONLL += "Peter NNP B-NP B-PER\nBlackburn NNP I-NP I-PER\nsaid VBD B-VP O\nso RB B-ADVP O\n"
SENTENCES = [["EU", "rejects", "German", "call", "."], ["Peter", "Blackburn", "said", "so"]]


@pytest.mark.parametrize("name", ["train.txt", "train.tsv"])
def test_words_with_tags_are_read_as_conll_whatever_the_file_is_called(tmp_path, name):
    content = CONLL.replace(" ", "\t") if name.endswith(".tsv") else CONLL
    for split in ("train", "valid", "test"):
        (tmp_path / name.replace("train", split)).write_text(content)
    found = [*reading.rows(tmp_path / name)]
    assert [each.code for each in found if isinstance(each, Doubt)] == ["text-as-kind"]
    rows = [each.values for each in found if isinstance(each, Read)]
    assert [row["tokens"] for row in rows] == SENTENCES
    assert rows[1]["tags"] == ["B-PER", "I-PER", "O", "O"]
    assert reading.column_names(tmp_path / name) == ("tokens", "tags")
    chosen = folders.chosen(tmp_path)
    assert [path.name for path in chosen.data] == [name]
    assert chosen.others == ("validation", "test")


@pytest.mark.parametrize(
    "content",
    [
        CONLL.replace("B-ORG", "ORG"),  # of spans no word is sure
        "\n".join(f"{word} O" for word in WORDS),
        "\n".join(f"{number} we want I-95 and O" for number in range(20)).replace("3 we", "3 and we"),
        "O\nB-side\n" * 10,
    ],
)
def test_other_lines_stay_texts(tmp_path, content):
    assert "text-as-kind" not in read(tmp_path, content)[0]
