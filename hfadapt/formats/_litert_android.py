"""How a .tflite file is called on Android, in Kotlin, with the file's own names, sizes and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hfadapt.formats import _litert_file as file
from hfadapt.formats._android import named, read_as
from hfadapt.tasks import Task

LIBRARY = "com.google.ai.edge.litert:litert:1.4.0"
KOTLIN = {"int32": "IntArray", "float32": "FloatArray"}

GUIDE = """\
# On Android

`{file}` needs Android 6 (API 23) or later and no network. This code was **not run** by hfadapt; the names, sizes and
numbers in it are those of the file. The file itself was run by LiteRT on another processor: see README.md.

In `build.gradle.kts`: `implementation("{library}")`, and `android {{ androidResources {{ noCompress += "tflite" }} }}`.
Put `{file}` into `src/main/assets`.

```kotlin
{code}
```

{notes}
"""

CALL = """\
import android.content.res.AssetManager
{imports}import java.nio.channels.FileChannel
import org.tensorflow.lite.Interpreter

{labels}class Model(assets: AssetManager) : AutoCloseable {{
    private val interpreter = assets.openFd("{file}").use {{ fd ->
        val file = fd.createInputStream().channel
        val bytes = file.map(FileChannel.MapMode.READ_ONLY, fd.startOffset, fd.declaredLength)
        Interpreter(bytes, Interpreter.Options().setNumThreads(4))
    }}

    /** {outputs} for one row. {meaning} */
    fun run({arguments}): {result} {{
        val output = {allocated}
        interpreter.runSignature(
            mapOf<String, Any>({given}),
            mapOf<String, Any>("{reads}" to output),
            "serving_default"
        )
        return output[0]
    }}

    override fun close() = interpreter.close()
}}
"""

TOKENS = (
    "`input_ids` are the ids of `tokenizer.json`, with its special tokens, at most {length}; fill the rest with {pad}, "
    "and `attention_mask` with 0 there and 1 elsewhere. Android has no tokenizer of its own: use the Rust crate "
    "`tokenizers` through JNI, or a port that reads this file, and compare its ids with those of Python on a few texts."
)


def android(path: Path, task: Task, labels: Sequence[str], about: Mapping[str, str], pad_token_id: int) -> str:
    """A page in Markdown.

    Args:
        path: The file.
        task: Whose output it has.
        about: What it says of itself, for pictures the settings of their processor.
        pad_token_id: What fills texts up.
    """
    opened, reads = file.opened(path, 1), task.file_reads or task.reads
    picture = next((name for name, shape in opened.shapes.items() if len(shape) == 4), None)
    types = {name: _kotlin(opened.inputs[name], shape) for name, shape in opened.shapes.items()}
    call = CALL.format(
        file=path.name,
        imports="import android.graphics.Bitmap\n" if picture else "",
        labels=named(labels),
        outputs=f"`{reads}`",
        meaning=task.meaning,
        arguments=", ".join(f"{name}: {kind}" for name, kind in types.items()),
        given=", ".join(f'"{name}" to {name}' for name in types),
        reads=reads,
        result=_kotlin("float32", opened.answers[reads][1:]),
        allocated=_allocated(opened.answers[reads]),
    )
    tokens = TOKENS.format(length=opened.shapes["input_ids"][1], pad=pad_token_id) if "input_ids" in types else ""
    more, notes = read_as(opened.shapes, about, tokens)
    call += more
    return GUIDE.format(file=path.name, library=LIBRARY, code=call.rstrip(), notes=notes)


def _kotlin(kind: str, shape: tuple[int, ...]) -> str:
    """The type of an array."""
    return "Array<" * (len(shape) - 1) + KOTLIN[kind] + ">" * (len(shape) - 1)


def _allocated(shape: tuple[int, ...]) -> str:
    """An array of zeros."""
    inner = f"FloatArray({shape[-1]})"
    for size in reversed(shape[:-1]):
        inner = f"Array({size}) {{ {inner} }}"
    return inner
