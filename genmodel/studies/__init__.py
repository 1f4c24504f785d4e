"""Studies: each one command, resumable stage by stage, with a committed report. Run them from the folder `genmodel`."""
