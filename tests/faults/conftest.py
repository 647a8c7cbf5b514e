"""Faults are put in below the process, where a C compiler can make what does that."""

import shutil
import sys

if sys.platform != "linux" or shutil.which("cc") is None:
    collect_ignore_glob = ["test_*.py"]
