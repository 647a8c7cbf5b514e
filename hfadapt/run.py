from hfadapt.run_folder import *  # noqa: F403  temporary
from hfadapt.run_folder import Cell, Run, find_cell, STATE  # noqa: F401
