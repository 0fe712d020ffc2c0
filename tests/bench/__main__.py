"""`make bench`: speed as a ratio to something in the same run, in interleaved trials; a line per figure, and a JSON file.

    name   median ratio [lowest – highest]   floor   what is compared

A figure below its floor makes the exit code 1. `make bench ONLY=load` picks the figures whose name contains the word.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from eventcore_lab.machine import environment
from tests.bench import batch, commands, live, load, pacing, projections, stores
from tests.bench.figure import Figure

OUT = Path("reports/bench.json")
FIGURES: tuple[Callable[[], Figure | list[Figure]], ...] = (
    *stores.FIGURES,
    *commands.FIGURES,
    *projections.FIGURES,
    load.load_record,
    load.load_null,
    *pacing.FIGURES,
    load.lab_ingest,
    live.live_cost,
    *batch.FIGURES,
)


def main(only: str) -> int:
    chosen = [f for f in FIGURES if only in f.__name__]
    if not chosen:
        print(f"no figure contains {only!r} (there are {', '.join(f.__name__ for f in FIGURES)})", file=sys.stderr)
        return 2
    found = []
    for work in chosen:
        made = work()
        for figure in made if isinstance(made, list) else [made]:
            found.append(figure)
            print(figure, flush=True)
    OUT.parent.mkdir(exist_ok=True)
    content = {"environment": environment(), "figures": [{**asdict(f), "median": f.median} for f in found]}
    OUT.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(f.is_met for f in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
