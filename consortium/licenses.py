"""Whether weights may be under a licence, given those of what they come from. Of licences by SPDX id, and no advice.

Four traits decide: what forbids commercial use passes that on; what asks for the same licence passes itself on; what
asks for attribution cannot become public domain; what allows no derivatives allows none.
"""

from __future__ import annotations

from collections.abc import Iterable

FREE = {"CC0-1.0", "Unlicense", "0BSD", "MIT-0", "PDDL-1.0", "public-domain"}
ATTRIBUTION = {"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "CC-BY-3.0", "CC-BY-4.0", "ODC-By-1.0",
               "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "etalab-2.0", "IODL-1.0",
               "NLOD-2.0", "DL-DE-BY-2.0", "OGL-UK-3.0"}  # fmt: skip
SAME = {"CC-BY-SA-3.0", "CC-BY-SA-4.0", "GPL-2.0-only", "GPL-3.0-only", "GPL-3.0-or-later", "AGPL-3.0-only",
        "AGPL-3.0-or-later", "ODbL-1.0", "EUPL-1.2", "MPL-2.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-SA-3.0"}  # fmt: skip
NON_COMMERCIAL = {"CC-BY-NC-4.0", "CC-BY-NC-3.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-SA-3.0"}
NO_DERIVATIVES = {"CC-BY-ND-4.0", "CC-BY-ND-3.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-ND-3.0"}
KNOWN = FREE | ATTRIBUTION | SAME | NON_COMMERCIAL | NO_DERIVATIVES


def conflicts(license: str, parents: Iterable[str]) -> list[str]:
    """Why weights that come from models under ``parents`` may not be under ``license``; nothing if they may."""
    found = []
    for parent in sorted(set(parents)):
        if parent in NO_DERIVATIVES:
            found.append(f"{parent} of a parent allows no derivatives")
        elif parent in SAME and license != parent:
            found.append(f"{parent} of a parent asks for {parent}, not {license}")
        elif parent in NON_COMMERCIAL and license not in NON_COMMERCIAL:
            found.append(f"{parent} of a parent forbids commercial use, which {license} allows")
        elif parent in ATTRIBUTION and license in FREE:
            found.append(f"{parent} of a parent asks for attribution, which {license} waives")
    return found


def unknown(licenses: Iterable[str]) -> list[str]:
    """Those of which this table knows nothing."""
    return sorted(set(licenses) - KNOWN)
