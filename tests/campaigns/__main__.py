"""`python -m campaigns [NAME ...]`: run campaigns whole, print what came out, exit 1 when a promise was broken."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from campaigns import table
from campaigns.catalogue import CAMPAIGNS
from campaigns.report import REPOSITORY, Report
from campaigns.runner import run

PUBLISHED = REPOSITORY / "docs" / "guarantees.json"
"""The summaries of the last whole run, from which the table of docs/guarantees.md is made."""


def main() -> int:
    known = {campaign.name: campaign for campaign in CAMPAIGNS}
    parser = argparse.ArgumentParser(prog="campaigns", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="only the rounds that `make test` runs")
    parser.add_argument("--fresh", action="store_true", help="forget the rounds that an earlier run has finished")
    parser.add_argument("--reports", type=Path, default=REPOSITORY / "var" / "prove", metavar="DIR")
    parser.add_argument("--publish", action="store_true", help="run nothing: reports into docs/guarantees.md")
    args = parser.parse_args()
    if args.publish:
        publish(args.reports)
        return 0
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"unknown campaign {unknown[0]!r}; there is {', '.join(known)}")
    summaries, skipped = [], []
    for name in args.names or known:
        campaign = known[name]
        if (why := campaign.missing()) is not None:
            skipped.append(name)
            print(f"{name}: skipped: {why}", flush=True)
            continue
        report = Report(args.reports / f"{name}.json", campaign, args.seed, quick=args.quick, fresh=args.fresh)
        # A short path, since sockets below it may not have a long one.
        with tempfile.TemporaryDirectory(prefix="prove.", dir="/tmp") as folder:
            run(campaign, report, args.seed, Path(folder), quick=args.quick, tell=lambda line: print(line, flush=True))
        summaries.append(report.summary())
        print("\n".join(table.lines(summaries[-1])), flush=True)
    print("\n" + table.markdown(summaries))
    broken = sum(len(one["violations"]) for one in summaries)
    print(f"{broken} broken promises" + (f"; skipped: {', '.join(skipped)}" if skipped else ""))
    return 1 if broken else 0


def publish(reports: Path) -> None:
    """Put the summaries of these reports in the place of earlier ones, and make the table anew."""
    summaries = {one["campaign"]: one for one in json.loads(PUBLISHED.read_text())} if PUBLISHED.exists() else {}
    for campaign in CAMPAIGNS:
        if (path := reports / f"{campaign.name}.json").exists():
            found = json.loads(path.read_text())
            summaries[campaign.name] = {key: value for key, value in found.items() if key not in ("rounds", "written")}
    ordered = [summaries[campaign.name] for campaign in CAMPAIGNS if campaign.name in summaries]
    PUBLISHED.write_text(json.dumps(ordered, indent=1, sort_keys=True) + "\n")
    page = PUBLISHED.with_suffix(".md")
    page.write_text(table.placed(page.read_text(), ordered))


if __name__ == "__main__":
    sys.exit(main())
