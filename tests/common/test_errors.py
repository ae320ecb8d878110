"""Exit codes are said in one place, and the documentation's table is that place's."""

import re
from pathlib import Path

from common import errors


def test_every_exit_code_has_a_meaning_and_the_documentation_says_it():
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == set(errors.MEANINGS)
    page = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text(encoding="utf-8")
    assert {int(code): said for code, said in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.M)} == errors.MEANINGS
