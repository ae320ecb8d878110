"""One rank inside a job: ``python -m launch.rank TRAIN.YAML`` trains, and leaves so that no other rank is cut off.

The trainer's "go on" (75) is an exit code above 0, for which srun and torchrun would end the ranks that are still
writing. So a rank that has stopped as asked leaves with 0, and rank 0 leaves the file ``go-on`` for the batch script.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from common.errors import EXIT_DONE, EXIT_GO_ON

if __name__ == "__main__":
    code: object = EXIT_DONE
    sys.argv = ["train.start", sys.argv[1]]
    try:
        runpy.run_module("train.start", run_name="__main__")  # by name: launch imports nothing of train
    except SystemExit as end:
        code = end.code
    if code == EXIT_GO_ON:
        if os.environ["RANK"] == "0":
            (Path(os.environ["HANSE_START"]) / "go-on").touch()
        code = EXIT_DONE
    sys.exit(code)  # type: ignore[arg-type]
