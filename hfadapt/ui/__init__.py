"""`hfadapt ui`: the records of runs as pages on this machine; base and adapter side by side; runs that are watched."""
