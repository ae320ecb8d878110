"""What ``make demo`` runs."""

import re
from pathlib import Path

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def demo_commands() -> list[list[str]]:
    """Arguments of ``hanse`` of each command of ``make demo``, as the Makefile has them."""
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", MAKEFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe
    return [line.split() for line in re.findall(r"^\thanse (.*)$", recipe[1], re.MULTILINE)]
