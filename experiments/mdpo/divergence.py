"""How far the policy moves per batch, from the metrics of the learning runs.

    python -m experiments.mdpo.divergence

Reads `metrics.jsonl` of every run folder that `experiments.mdpo.on_policy` made and
writes, per evaluation and seed, the mean KL(old || new) of the gradient steps since
the evaluation before to `results/divergence.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.mdpo._shared import RESULTS
from experiments.records import origin, write
from rlx.record import RunFolder


def main() -> None:
    """Reads the run folders and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/mdpo"))
    runs = parser.parse_args().runs
    table = {}
    for folder in sorted(runs.iterdir()):
        rows = [
            r for r in RunFolder.open(folder).rows() if "behaviour_kl" in r["train"]
        ]
        table[folder.name] = {
            "steps": [row["step"] for row in rows],
            "behaviour_kl": [
                [round(kl, 5) for kl in row["train"]["behaviour_kl"]] for row in rows
            ],
        }
        for row in rows[8:13:4]:
            kl = row["train"]["behaviour_kl"]
            print(f"{folder.name} {row['step']}: {min(kl):.4f} to {max(kl):.4f}")
    write(RESULTS / "divergence.json", {"runs": table, **origin("mdpo.divergence")})


if __name__ == "__main__":
    main()
