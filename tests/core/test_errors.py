"""Faults of the machine are told from faults of the program."""

import errno
import os
import shutil

import pytest

from hfadapt.core.errors import fault_of_machine

TOLD = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "the disk is full"),
    errno.EMFILE: "no more files may be opened at once",
    errno.EACCES: "this may not be read or written",
    errno.EIO: "the disk cannot be read or written",
}


@pytest.mark.parametrize("number", TOLD)
def test_a_folder_that_cannot_be_copied_is_told_as_its_first_file_is(number, tmp_path):
    (tmp_path / "from").mkdir()
    for each in range(5):
        (tmp_path / "from" / f"{each}{'a' * 100}").write_text("content")

    def copy(source, target):
        raise OSError(number, os.strerror(number), str(target))

    with pytest.raises(shutil.Error) as caught:
        shutil.copytree(tmp_path / "from", tmp_path / "to", copy_function=copy)
    fault = fault_of_machine(caught.value)
    assert fault.what == TOLD[number]
    assert str(tmp_path / "to") in fault.problems[0].place


def test_what_the_program_did_wrong_is_no_fault_of_the_machine(tmp_path):
    assert fault_of_machine(shutil.Error("they are the same file")) is None
    assert fault_of_machine(ValueError("no")) is None
