"""The list of faults that hfadapt survives, with what a user does about each: for the tests, the benchmark and
docs/faults.md. The first thirty are those that training tools are known to die of."""

from __future__ import annotations

import inputs
import leaving
import machines
import saving
from place import Fault

AGAIN = "run the same command again"
NOTHING = "nothing"
FREE = "free some space, or give another disk (`--runs`, `HFADAPT_CACHE`), and run the same command again"

FAULTS = tuple(
    Fault(number, name, to_do, put, slow)
    for number, (name, to_do, put, slow) in enumerate(
        (
            ("killed (-9) while a checkpoint is written", AGAIN, saving.killed_in_a_save, False),
            ("the disk is full while a checkpoint is written", FREE, saving.full_in_a_save, False),
            ("the disk is full while the card is written", FREE, saving.full_in_the_card, False),
            ("a byte of the newest checkpoint has flipped", NOTHING, saving.flipped, False),
            ("the newest checkpoint has no optimizer", NOTHING, saving.without_optimizer, False),
            ("a checkpoint's folder holds something else", NOTHING, saving.foreign, False),
            (
                "settings have changed since the checkpoint",
                "give the old settings to go on",
                saving.changed_since,
                False,
            ),
            ("going on with another number of processes", NOTHING, saving.another_world, True),
            ("the loss is not a number", "lower `train.learning_rate`, or look at the rows", inputs.not_finite, False),
            ("every gradient is zero", "look at labels and `adapter.modules`", inputs.no_gradient, False),
            ("no memory for the first step", NOTHING, saving.short_at_once, False),
            ("no memory in the middle", NOTHING, saving.short_later, False),
            ("killed by the system for lack of memory", AGAIN, saving.killed_for_memory, False),
            ("SIGTERM, SIGUSR1 or Ctrl-C in training, evaluation or preparing", AGAIN, saving.stopped, True),
            ("prepared rows vanish before training", NOTHING, saving.rows_vanish, False),
            ("one of several processes dies", AGAIN, saving.a_rank_dies, True),
            ("fewer processes start than were asked for", "start them with torchrun", saving.fewer_processes, False),
            ("two runs in one folder", "wait, or give another `--runs` folder", saving.two_runs, False),
            (
                "rows that are not JSON, not UTF-8, empty, huge, or without a field",
                "correct them",
                inputs.bad_rows,
                False,
            ),
            ("nothing is left to learn from", "raise `data.max_length`", inputs.nothing_to_learn, False),
            ("training rows are test rows", NOTHING, inputs.overlap, False),
            ("an adapter meets another base", "give it its own base", inputs.another_base, False),
            ("domains are called as parts of the model", NOTHING, inputs.colliding_names, False),
            ("an adapter brings a pickle or a foreign import", "do not open it", inputs.hostile_adapter, False),
            ("a chat template does not end, or fills memory", "do not use it", inputs.endless_template, True),
            ("a method that does not work on the base's storage", "choose another", inputs.unsupported, False),
            ("merging changes more than its limit", "publish the adapter", leaving.merge_differs, True),
            ("the Hub fails, or loses its answer", "as it says", leaving.hub_fails, False),
            ("a secret in what is published", "take it out", leaving.secrets, False),
            ("a card with a placeholder", "finish the card", leaving.unfinished_card, False),
            ("a folder that cannot be written", "give another with `--runs`", machines.read_only, False),
            ("the working folder is gone", "cd to one that is there", machines.working_folder_gone, False),
            ("the clock is set back", NOTHING, machines.clock_set_back, False),
            ("no more files may be opened", "`ulimit -n 4096`", machines.few_files, False),
            (
                "a limit of memory (ulimit -v)",
                "raise it, or take a plan that needs less",
                machines.little_memory,
                False,
            ),
            ("no room for the checkpoints", FREE, machines.no_room, False),
            ("a file system without locks", "see that no other run uses the folder", machines.without_locks, False),
            ("two runs share the caches", NOTHING, machines.shared_caches, True),
            ("rows with formulas and HTML", NOTHING, machines.hostile_text, False),
            ("one of several processes hangs in a step", AGAIN, saving.a_rank_hangs, True),
            (
                "one of several processes has no memory left (torchrun --max-restarts 1)",
                NOTHING,
                saving.short_beside_another,
                True,
            ),
            ("one of several processes dies (torchrun --max-restarts 1)", NOTHING, saving.dies_once, True),
        ),
        1,
    )
)
