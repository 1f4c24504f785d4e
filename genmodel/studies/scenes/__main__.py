"""``python -m studies.scenes``: runs the study, or what is left of it, and writes its report."""

import tyro

from .study import ScenesConfig, run

if __name__ == "__main__":
    run(tyro.cli(ScenesConfig, description=__doc__))
