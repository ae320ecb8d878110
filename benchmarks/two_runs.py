"""How far two runs are apart in the steps that both have made: relative, of losses and of gradient norms.

python -m benchmarks.two_runs RUN OTHER [--after STEP]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from train.run_folder import read_metrics

KEYS = ("loss", "gradient_norm")


def steps(run: Path) -> dict[int, dict[str, float]]:
    """{step: what was measured in it} of a run folder."""
    return {record["step"]: record for record in read_metrics(run / "metrics.jsonl") if "loss" in record}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--after", type=int, default=0, help="look at the steps after this one only")
    options = parser.parse_args()
    one, other = steps(options.run), steps(options.other)
    both = [step for step in one if step in other and step > options.after]
    if not both:
        parser.error("no step that both have made")
    apart = {key: max(abs(other[step][key] / one[step][key] - 1) for step in both) for key in KEYS}
    told = ", ".join(f"largest difference of a {key.replace('_', ' ')} {value:.2e}" for key, value in apart.items())
    print(f"{len(both)} steps, {both[0]} to {both[-1]}: {told}")


if __name__ == "__main__":
    main()
