"""Every seeded fault must be refused with its line, what is allowed and a fix; several faults in one pass."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest
from recipe_faults import BASE, CHAT, FAULTS

from hfadapt.core import registry, samples
from hfadapt.core.errors import Problem, RecipeError
from hfadapt.hardware import catalogue
from hfadapt.recipe import yaml_lines
from hfadapt.recipe.fast import FAST_PARTS
from hfadapt.recipe.reading import load_recipe
from hfadapt.recipe.words import sections

JARGON = (
    "pydantic",
    "https://",
    "Input should",
    "literal[",
    "Traceback",
    "constrained",
    "function-",
    "validation error",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe folder with data and models of every kind that a check looks at; also the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("text,label\ngood,yes\n", encoding="utf-8")
    (tmp_path / "test.csv").write_text("text,label\nbad,no\n", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"question": "a"}\n{"question": "b", "reply": "c"}\n', encoding="utf-8")
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    (tmp_path / "sheet.ods").write_text("x", encoding="utf-8")
    (tmp_path / "note.txt").write_text("words\n", encoding="utf-8")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "saved" / "inner").mkdir(parents=True)
    (tmp_path / "saved" / "inner" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "dangling.csv").symlink_to("gone.csv")
    with tarfile.open(tmp_path / "rows.tar.gz", "w:gz") as archive:
        archive.add(__file__, "rows.csv")
    (tmp_path / "weights.bin").write_text("x", encoding="utf-8")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}", encoding="utf-8")
    return tmp_path


def write(folder: Path, text: str | bytes, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(path: Path, *args: object, **options: object) -> tuple[Problem, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, *args, **options)  # type: ignore[arg-type]
    for word in JARGON:
        assert word not in str(caught.value)
    return caught.value.problems


# --- one fault each, from recipe_faults.py -----------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_fault(folder: Path, name: str) -> None:
    text, line, fragments = FAULTS[name]
    path = write(folder, text)
    found = problems_of(path)
    message = "\n".join(map(str, found))
    assert len(found) == 1, message
    assert found[0].place == f"{path}:{line}", message
    assert found[0].fix, message
    for fragment in fragments:
        assert fragment in message, message


@pytest.mark.parametrize("text", [BASE, CHAT])
def test_bases_of_the_table_are_right(folder: Path, text: str) -> None:
    assert load_recipe(write(folder, text)).targets == ("this-machine",)


def test_recipe_of_the_design(folder: Path) -> None:
    domains = "".join(f"  {name}: {{source: 'sample:vader/{name}'}}\n" for name in ("tweets", "movies", "news"))
    text = "name: sentiment\nmodel: sample:minilm-l6\ntask: text-classification\ndomains:\n" + domains
    recipe = load_recipe(write(folder, "# four lines\n" + text + "targets: [this-machine, t4]\n"))
    assert len(recipe.cells()) == 6


def test_every_section_explains_unknown_keys(folder: Path) -> None:
    names = {key for section in sections().values() for key in section.model_fields}
    assert {"epochs", "rank", "near", "word_swap", "gates", "role", "weight"} <= names
    assert {"", "train", "data.dedupe", "domains.NAME", "domains.NAME.columns"} <= set(sections())


# --- several at once -------------------------------------------------------------------------------------------------


def test_all_faults_at_once_sorted_by_line(folder: Path) -> None:
    path = write(
        folder,
        textwrap.dedent("""\
        model: sample:minilm
        task: text-clasification
        epochs: 3
        domains:
          tweets: {source: "sample:vader/tweet"}
          Tweets: nope.csv
        targets: [t4, t5]
        quant: int8
        quant: nf4
        adapter: {method: dora, rnk: 4}
        train:
          epochs: -1
          batch_rows: 4
          micro_batch_rows: 8
        """),
    )
    lines = [int(str(problem.place).rpartition(":")[2]) for problem in problems_of(path)]
    assert lines == [1, 2, 3, 5, 6, 6, 7, 9, 10, 10, 12, 14]


def test_each_fault_is_found_beside_any_other(folder: Path) -> None:
    """A fault in one section hides none in another."""
    extra = ["quant: nf5", "adapter: {rank: 0}", "dtype: half", "train: {epocs: 3}", "targets: [t5]", "zzz: 1"]
    found = problems_of(write(folder, BASE.replace("data.csv", "gone.csv") + "\n".join(extra)))
    assert [str(each.place).rpartition(":")[2] for each in found] == [str(line) for line in range(4, 11)]


def test_a_refused_value_is_judged_once(folder: Path) -> None:
    """One wrong union value is one problem, whatever members the union has."""
    assert len(problems_of(write(folder, BASE + "adapter: {modules: [1, 2], dropout: [x]}\n"))) == 3


def test_merged_alias_reports_one_reference(folder: Path) -> None:
    bomb = "".join(f"x{i}: [{', '.join([f'*x{i - 1}'] * 9)}]\n" if i else "x0: &x0 [a]\n" for i in range(9))
    found = problems_of(write(folder, BASE + bomb))
    assert sum("anchors" in each.what for each in found) == 1


def test_message_form(folder: Path) -> None:
    path = write(folder, BASE + "quant: nf5\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        f"{path}:5: there is no quant of that name\n"
        "  got:     'nf5'\n  allowed: auto, fp4, int8, nf4, none\n  fix:     did you mean 'nf4'?"
    )


def test_long_values_are_cut(folder: Path) -> None:
    found = problems_of(write(folder, BASE + f"quant: {'x' * 5000}\ntargets: {list(range(500))}\n"))
    assert all(len(str(each.got)) <= 60 for each in found)


def test_flood_of_faults_is_cut(folder: Path) -> None:
    found = problems_of(write(folder, BASE + "".join(f"key{i}: {i}\n" for i in range(4000))))
    assert len(found) == 51
    assert found[-1].what == "and 3,950 more problems"


# --- files -----------------------------------------------------------------------------------------------------------


def test_no_such_recipe(folder: Path) -> None:
    write(folder, BASE, "sentiment.yaml")
    (problem,) = problems_of(folder / "sentimnt.yaml")
    assert problem.fix == f"did you mean {str(folder / 'sentiment.yaml')!r}?"


def test_recipe_is_a_folder(folder: Path) -> None:
    assert "is a folder" in problems_of(folder)[0].what


def test_recipe_too_large(folder: Path) -> None:
    (problem,) = problems_of(write(folder, BASE + "# " + "x" * yaml_lines.LIMIT_BYTES))
    assert "too large" in problem.what


def test_name_from_the_file(folder: Path) -> None:
    assert load_recipe(write(folder, BASE, "my recipe (2).yaml")).name == "my-recipe-2"
    assert load_recipe(write(folder, BASE + "name: other\n")).name == "other"
    assert load_recipe(write(folder, BASE, "---.yaml")).name == "recipe"


# --- what is accepted ------------------------------------------------------------------------------------------------


def test_words_that_yaml_takes_for_something_else(folder: Path) -> None:
    text = BASE.replace("data.csv", "{source: data.csv, labels: [yes, no, on], language: no}")
    extra = "data: {clean: {pii: off}, dedupe: {near: no}, packing: off}\ntrain: {learning_rate: 1e-4, epochs: 3}\n"
    recipe = load_recipe(write(folder, text + extra))
    assert recipe.domains["mine"].labels == ("yes", "no", "on")
    assert recipe.domains["mine"].language == "no"
    assert recipe.data.clean.pii == "off"
    assert recipe.data.dedupe.near is False
    assert recipe.data.packing is False
    assert recipe.train.learning_rate == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("3", 3), ("-0.5", -0.5), (".5", 0.5), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"),
     ("0x10", "0x10"), ("~", None), ("Null", None), ("TRUE", True), ("off", "off"), ("1.2.3", "1.2.3"), ("", None)],
)  # fmt: skip
def test_plain_words(text: str, value: object) -> None:
    got = yaml_lines.plain(text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("model", ["gpt2", "owner/name", "owner/name@v1.0", "tiny", "./tiny", "sample:minilm-l6"])
def test_models_accepted(folder: Path, model: str) -> None:
    assert load_recipe(write(folder, BASE.replace("sample:minilm-l6", model))).model == model


def test_model_beside_the_recipe_is_found_from_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, BASE.replace("sample:minilm-l6", "./tiny"))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert (Path(load_recipe(path).model) / "config.json").is_file()
    monkeypatch.chdir(folder.parent)
    assert load_recipe(path).model == f"{folder.name}/tiny"


@pytest.mark.parametrize(
    "source",
    ["imdb", "owner/name", "sample:vader/news", "'*.csv'", "./data.csv", "{sources: [data.csv, test.csv]}",
     "{source: data.csv, test: test.csv, columns: {text: text}}", "{source: imdb, validation: test, test: other}",
     "{source: imdb, split: 'train[:80%]', test: 'train[80%:]'}"],
)  # fmt: skip
def test_sources_accepted(folder: Path, source: str) -> None:
    (folder / "empty.csv").unlink()
    assert load_recipe(write(folder, BASE.replace("data.csv", source, 1))).domains["mine"]


@pytest.mark.parametrize(
    "extra",
    ["template: {prompt: 'Q: {question}', completion: ' {reply}'}",
     'template: {prompt: "{question}", completion: ''\'{"a": "{reply}"}\'''}',
     "template: {messages: [{role: user, content: '{question}'}, {role: assistant, content: '{reply}'}]}",
     "quant: nf4\nadapter: {method: dora, rank: 4}", "quant: none\nadapter: {method: full}",
     "train: {max_steps: 3, epochs: 2, micro_batch_rows: 4, batch_rows: 4}", "data: {validation: 100, test: 0.5}",
     "evaluate: {gates: {perplexity: 0.1}}", "adapter: {method: head, rank: auto}"],
)  # fmt: skip
def test_settings_accepted(folder: Path, extra: str) -> None:
    load_recipe(write(folder, CHAT + extra + "\n"))


def test_every_method_agrees_with_its_contract(folder: Path) -> None:
    for method in registry.names("adapters"):
        for quant in registry.names("quants"):
            path = write(folder, BASE + f"quant: {quant}\nadapter: {{method: {method}}}\n")
            if quant in registry.adapter(method).quants:
                load_recipe(path)
            else:
                assert method in problems_of(path)[0].what


# --- overrides and narrowing -----------------------------------------------------------------------------------------


def test_overrides(folder: Path) -> None:
    path = write(folder, BASE + "train: {epochs: 1, seed: 5}\n")
    recipe = load_recipe(
        path,
        ["train.epochs=3", "quant=nf4", "data.dedupe.near=false", "targets=[t4, l4]", "train.learning_rate=1e-4",
         "domains.mine.columns.text=text", "domains.v1.source=./test.csv", "evaluate.gates.macro_f1=0.01"],
    )  # fmt: skip
    assert (recipe.train.epochs, recipe.train.seed, recipe.train.learning_rate) == (3, 5, 1e-4)
    assert recipe.quant == "nf4"
    assert recipe.data.dedupe.near is False
    assert recipe.targets == ("t4", "l4")
    assert recipe.domains["mine"].source == "data.csv"
    assert recipe.domains["mine"].columns.text == "text"
    assert recipe.domains["v1"].source == "./test.csv"
    assert recipe.evaluate.gates == {"macro_f1": 0.01}


@pytest.mark.parametrize(("said", "auto"), [("false", False), ("auto", True), ("{auto: true}", True)])
def test_augmentation_is_left_to_a_trial_in_a_word(folder: Path, said: str, auto: bool) -> None:
    augment = load_recipe(write(folder, BASE + f"data: {{augment: {said}}}\n")).data.augment
    assert (augment.auto, augment.on) == (auto, False)


def test_parts_of_the_fast_path_are_switched_one_by_one(folder: Path) -> None:
    whole = load_recipe(write(folder, BASE)).train.fast
    assert (whole.without, whole.used, whole.compile) == ((), True, "auto")
    assert load_recipe(write(folder, BASE + "train: {fast: true}\n")).train.fast == whole
    assert load_recipe(write(folder, BASE + "train: {fast: {norms: false}}\n")).train.fast.without == ("norms",)
    none = write(folder, BASE + "train: {fast: false}\n")
    assert not load_recipe(none).train.fast.used
    assert load_recipe(none).train.fast.without == FAST_PARTS
    only = load_recipe(none, ["train.fast.attention=true"]).train.fast
    assert (only.attention, only.norms, only.compile) == (True, False, False)
    assert load_recipe(write(folder, BASE), ["train.fast.loss=false"]).train.fast.without == ("loss",)


@pytest.mark.parametrize(
    ("value", "fragments"),
    [
        ("{norm: false}", ("unknown key `norm`", "did you mean `norms`?")),
        ("{norms: 3}", ("`train.fast.norms` cannot", "true or false")),
        ("sometimes", ("`train.fast` cannot", "true, false, or parts such as {norms: false}")),
        ("[norms]", ("`train.fast` cannot", "true, false, or parts such as {norms: false}")),
    ],
)
def test_faults_in_the_parts_of_the_fast_path(folder: Path, value: str, fragments: tuple[str, ...]) -> None:
    (problem,) = problems_of(write(folder, BASE + f"train: {{fast: {value}}}\n"))
    for fragment in fragments:
        assert fragment in str(problem)


def test_override_of_a_name_with_dots_and_of_a_list_entry(folder: Path) -> None:
    path = write(folder, BASE + "  v1.2: {sources: [data.csv, test.csv]}\n")
    recipe = load_recipe(path, ["domains.v1.2.language=en", "domains.v1.2.sources.1=note.txt"])
    assert recipe.domains["v1.2"].language == "en"
    assert [each.source for each in recipe.domains["v1.2"].all_sources()] == ["data.csv", "note.txt"]


def test_override_mends_the_file(folder: Path) -> None:
    path = write(folder, BASE + "quant: nf5\ntrain: &a {epochs: 1}\n")
    assert [each.what for each in problems_of(path, ["quant=nf4"])] == ["YAML anchors and aliases are not allowed"]


def test_override_of_a_refused_value_is_judged_itself(folder: Path) -> None:
    path = write(folder, BASE + "train: {epochs: *many}\n")
    places = [each.place for each in problems_of(path, ["train.epochs=0"])]
    assert places == [f"{path}:5", "command line: train.epochs=0"]


def test_last_override_wins(folder: Path) -> None:
    assert load_recipe(write(folder, BASE), ["quant=nf4", "quant=int8"]).quant == "int8"


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("train.epochs", ("KEY=VALUE", "such as train.epochs=3")),
        ("=3", ("KEY=VALUE",)),
        ("train..epochs=3", ("KEY=VALUE",)),
        ("train.epochs=", ("gives no value",)),
        ("train.epochs=-3", ("`train.epochs` cannot", "a number > 0, or auto")),
        ("trian.epochs=3", ("unknown key `trian`", "did you mean `train`?")),
        ("train.epocs=3", ("unknown key `epocs`", "did you mean `epochs`?")),
        ("epochs=3", ("`epochs` belongs under `train`",)),
        ("quant=nf5", ("did you mean 'nf4'?",)),
        ("targets=[t4,l5]", ("no target",)),
        ("targets=[t4", ("bracket is not closed",)),
        ("quant.bits=4", ("has no settings below it", "'none'")),
        ("train.epochs=*x", ("anchors and aliases",)),
        ("train={epochs: 1, epochs: 2}", ("given twice",)),
        ("domains.new.source=./gone.csv", ("no such file",)),
        ("domains.new.rows=5", ("either source or sources",)),
        ("adapter.method=pissa", ("no such",) * 0),
    ],
)
def test_override_faults(folder: Path, override: str, fragments: tuple[str, ...]) -> None:
    path = write(folder, BASE + "quant: none\n")
    if not fragments:
        load_recipe(path, [override])
        return
    (problem,) = problems_of(path, [override])
    assert problem.place == f"command line: {override}"
    for fragment in fragments:
        assert fragment in str(problem)


def test_problems_of_file_and_command_line_together(folder: Path) -> None:
    path = write(folder, BASE + "quant: nf5\n")
    found = problems_of(path, ["train.epochs=0", "dtype=x"], domains=["mien"], targets=["t5000"])
    assert [each.place for each in found] == [
        f"{path}:5",
        "command line: train.epochs=0",
        "command line: dtype=x",
        "command line: --domain mien",
        "command line: --target t5000",
    ]
    assert found[3].fix == "did you mean 'mine'?"


def test_narrowing(folder: Path) -> None:
    path = write(folder, BASE + "  other: test.csv\n  third: note.txt\ntargets: [t4]\n")
    recipe = load_recipe(path, domains=["third", "mine"], targets=["l4", "this-machine", "l4"])
    assert recipe.cells() == [(d, t) for d in ("mine", "third") for t in ("l4", "this-machine")]
    assert load_recipe(path, domains=[], targets=[]).cells() == [(d, "t4") for d in ("mine", "other", "third")]


def test_narrowing_needs_only_the_files_of_its_domains(folder: Path) -> None:
    """Rows are compared with those of the others, unless the recipe says that they are not."""
    path = write(folder, BASE + "  other: gone.csv\n")
    recipe = load_recipe(path, ["data.dedupe.across_domains=false"], domains=["mine"])
    assert (list(recipe.domains), recipe.chosen) == (["mine", "other"], ("mine",))
    assert "no such file" in problems_of(path, domains=["mine"])[0].what
    assert "no such file" in problems_of(path)[0].what
    assert len(problems_of(path, domains=["nobody"])) == 2


def test_targets_come_from_the_catalogue(folder: Path) -> None:
    assert load_recipe(write(folder, BASE), targets=catalogue.names()).targets == catalogue.names()


# --- effort and imports ----------------------------------------------------------------------------------------------


def test_offline_and_without_heavy_imports(folder: Path) -> None:
    """In a fresh process: no socket opened, nothing heavy imported."""
    path = write(folder, BASE.replace("data.csv", "gone.csv") + "quant: nf5\ntrain: {epocs: 1, epochs: yes}\n")
    code = textwrap.dedent(f"""
        import socket, sys
        def refuse(*args, **options):
            raise AssertionError("network")
        socket.socket.connect = refuse
        from hfadapt.core.errors import RecipeError
        from hfadapt.recipe.reading import load_recipe
        try:
            load_recipe({str(path)!r}, ["quant=nf6"])
        except RecipeError as error:
            print(len(error.problems))
        heavy = ("torch", "transformers", "peft", "accelerate", "datasets", "pyarrow", "numpy", "sklearn")
        print([name for name in heavy if name in sys.modules])
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["4", "[]"], done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "x: [" * 200_000,
        "a: " + "&a [" * 100_000,
        BASE + "# " + "x" * 1_000_000 + "\nquant: nf5\n",
        BASE + "name: '" + "x" * 1_000_000 + "'\n",
        BASE + "".join(f"{i:06}x: 1\n" for i in range(9_000)),
        BASE + "train: {epochs: " + "9" * 900_000 + "}\n",
        BASE + "data: " + "- " * 300_000 + "\n",
        "? " * 300_000,
    ],
)
def test_hostile_files_are_refused_with_little_effort(folder: Path, text: str) -> None:
    """Calls, which a machine's speed does not change, grow with the file at most, whatever stands in it."""
    path = write(folder, text)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    problems_of(path)  # whatever is imported or worked out once
    sys.setprofile(count)
    try:
        problems_of(path)
    finally:
        sys.setprofile(None)
    assert calls < 10 * len(text)


def test_samples_of_the_table_exist() -> None:
    assert {"minilm-l6", "smollm2-135m"} <= set(samples.models())
    assert "vader/tweets" in samples.datasets()
