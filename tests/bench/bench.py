#!/usr/bin/env python3
"""Runs the benchmarks and prints tables in Markdown. tests/bench/run builds what it needs first.

Rounds are interleaved: a round runs every server under every load, and the next round begins again; for
lockstep and churn many short rounds of one load, servers in a new order each time.
A figure is the median of the rounds, with [least-most]; a ratio is the median of the ratios within a
round. What ran when is on stderr.
"""

import argparse
import os
import signal
import sys
import time

import tables
from chart import chart
from goals import goals_table
from measuring import SECTIONS, SERVERS, Bench, Failed, say


def main():
    parser = argparse.ArgumentParser(
        prog="tests/bench/run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter,
        epilog="sections: " + " ".join(SECTIONS) + "\nservers: " + " ".join(s.name for s in SERVERS))
    parser.add_argument("mode", nargs="?", choices=["quick", "full"], default="quick",
                        help="quick: below 2 minutes, to see whether anything is badly off; full: below 15")
    parser.add_argument("name", nargs="*", help="only these sections or servers")
    parser.add_argument("--chart", metavar="PATH", help="draw one of the CPU a message, as SVG")
    parser.add_argument("--build", required=True, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cxx = os.environ.get("CXX", "g++").split()[-1]

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended
    b = Bench(arguments)
    b.run_all()
    shown = [arguments.mode] + arguments.name
    tables.head(b, shown, cxx)
    for section, keys, show in (
            ("lockstep", ["l64"], tables.lockstep_table), ("observed", ["seen"], tables.observed_table),
            ("closed", ["c64"], tables.closed_table),
            ("spin", ["c1", "c1w"], tables.spin_table), ("open", ["open"], tables.open_table),
            ("churn", ["churn"], tables.churn_table), ("firehose", ["hose"], tables.firehose_table),
            ("idle", ["idle"], tables.idle_table)):
        if section in b.sections and b.has(*keys):
            show(b)
    micro = compiled = None
    try:
        if "micro" in b.sections:
            micro = tables.micro_table(b)
        if "compile" in b.sections:
            compiled = tables.compile_table(b, cxx)
    except Failed as failed:
        b.failures.append(str(failed))
    goals_table(b, micro, compiled, cxx)
    for failure in b.failures:
        print(f"**Failed:** {failure}\n")
    if arguments.chart:
        chart(b, os.path.abspath(arguments.chart))
    say(f"done in {time.monotonic() - b.began:.0f} s")
    sys.exit(1 if b.failures else 0)


if __name__ == "__main__":
    main()
