"""``python -m studies.clipart``: runs the study, or what is left of it, and writes its report."""

import tyro

from .study import ClipartConfig, run

if __name__ == "__main__":
    run(tyro.cli(ClipartConfig, description=__doc__))
