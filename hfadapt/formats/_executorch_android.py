"""How a .pte file is called on Android, in Kotlin, with the file's own names, sizes and preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from math import prod
from typing import TYPE_CHECKING

from hfadapt.formats._android import named, read_as
from hfadapt.tasks import Task

if TYPE_CHECKING:
    from hfadapt.formats._executorch_file import Opened

LIBRARY = "org.pytorch:executorch-android"
ARRAYS = {"int64": "LongArray", "int32": "IntArray", "float32": "FloatArray"}
PICTURE = "Array<Array<Array<FloatArray>>>"

GUIDE = """\
# On Android

`{file}` needs no network. This code was **not run** by hfadapt; the names, sizes and numbers in it are those of the
file. The file itself was run by ExecuTorch on another processor: see README.md.

In `build.gradle.kts`: `implementation("{library}")`, the version that made the file or a later one. Put `{file}` into
`src/main/assets`; ExecuTorch reads files, so it is copied once.

```kotlin
{code}
```

{notes}
"""

CALL = """\
import android.content.Context
{imports}import java.io.File
import java.nio.FloatBuffer
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

{labels}class Model(context: Context) : AutoCloseable {{
    private val module = File(context.filesDir, "{file}").let {{ copy ->
        context.assets.open("{file}").use {{ from -> copy.outputStream().use {{ from.copyTo(it) }} }}
        Module.load(copy.path)
    }}

    /** `{reads}` for one row: {size}. {meaning} */
    fun run({arguments}): FloatArray {{
{lines}
        return module.forward({given})[0].toTensor().dataAsFloatArray
    }}

    override fun close() = module.destroy()
}}
"""

TOKENS = (
    "`input_ids` are the ids of `tokenizer.json`, with its special tokens, one to {length}, and `attention_mask` is 1 "
    "for each; nothing is filled up. Android has no tokenizer of its own: use the Rust crate `tokenizers` through JNI, "
    "or a port that reads this file, and compare its ids with those of Python on a few texts."
)


def android(file: str, opened: Opened, labels: Sequence[str], task: Task) -> str:
    """A page in Markdown.

    Args:
        file: Its name.
        opened: The file in its runtime.
        task: Whose output it has.
    """
    picture = next((name for name, shape in opened.shapes.items() if len(shape) == 4), None)
    code = CALL.format(
        file=file,
        imports="import android.graphics.Bitmap\n" if picture else "",
        labels=named(labels),
        reads=task.file_reads or task.reads,
        size=f"{prod(opened.answers)} numbers" + (" at most" if "input_ids" in opened.shapes and not labels else ""),
        meaning=task.meaning,
        arguments=", ".join(
            f"{name}: {PICTURE if name == picture else ARRAYS[kind]}" for name, kind in opened.inputs.items()
        ),
        lines="\n".join(_tensor(name, opened.shapes[name], name == picture) for name in opened.inputs),
        given=", ".join(f"EValue.from({name}Tensor)" for name in opened.inputs),
    )
    tokens = TOKENS.format(length=opened.shapes["input_ids"][1]) if "input_ids" in opened.shapes else ""
    more, notes = read_as(opened.shapes, opened.about, tokens)
    code += more
    library = f"{LIBRARY}:{version('executorch')}"
    return GUIDE.format(file=file, library=library, code=code.rstrip(), notes=notes)


def _tensor(name: str, shape: tuple[int, ...], picture: bool) -> str:
    """Lines that make the tensor of an argument."""
    indent = " " * 8
    if picture:
        return (
            f"{indent}val numbers = FloatBuffer.allocate({prod(shape)})\n"
            f"{indent}for (colour in {name}[0]) for (row in colour) numbers.put(row)\n"
            f"{indent}val {name}Tensor = Tensor.fromBlob(numbers.array(), longArrayOf({', '.join(map(str, shape))}))"
        )
    sizes = f"1, {name}.size.toLong()" if len(shape) == 2 else ", ".join(map(str, shape))
    return f"{indent}val {name}Tensor = Tensor.fromBlob({name}, longArrayOf({sizes}))"
