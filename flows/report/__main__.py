"""Command line of the report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from features.errors import DataError
from flows.report.inputs import ReportPaths
from flows.report.page import write_report


def main() -> int:
    """Writes the page; every setting is in params.yaml."""
    defaults = ReportPaths()
    parser = argparse.ArgumentParser(prog="python -m flows.report", description="Writes the report of a run.")
    for name in ("params", "events", "vocab", "streams", "validation", "metrics"):
        parser.add_argument(f"--{name}", type=Path, default=getattr(defaults, name))
    parser.add_argument("--out", type=Path, default=Path("reports/index.html"))
    args = vars(parser.parse_args())
    out = args.pop("out")
    try:
        write_report(ReportPaths(**args), out)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{out}: open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
