"""A way to a cell that can be exported."""

from __future__ import annotations

from tiny import command, recipe_fields, write_recipe, write_rows

from hfadapt.run_folder import Cell


def trained(folder, model, task, rows, **fields):
    """A cell that was trained and evaluated."""
    write_rows(folder / "one.jsonl", rows)
    fields = {"train": {"batch_rows": 8, "max_steps": 30, "learning_rate": 0.01}, **fields}
    fields = recipe_fields(model, task, **fields)
    fields["evaluate"] |= {"security": False}
    write_recipe(folder / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return Cell(folder / "runs/tiny/one/this-machine")
