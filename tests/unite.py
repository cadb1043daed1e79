#!/usr/bin/env python3
"""Writes one C++ source out of several: unite.py OUTPUT SOURCE...

Compiling a test is mostly compiling the headers it includes, and these are the same for all. Each source keeps its
names to itself, in a namespace of its own, and its line numbers; so does a source that it includes.
"""

import pathlib
import re
import sys


def parts(source: pathlib.Path) -> tuple[list[str], int]:
    """The lines of a source, and how many of them belong to its beginning, which ends with the last #include of a header."""
    lines = source.read_text().splitlines()
    begin = 0
    for i, line in enumerate(lines):
        included = re.match(r'#include (["<])(.*)[">]', line)
        if included and not included[2].endswith(".cpp"):
            begin = i + 1
        if included and included[1] == '"' and (near := source.resolve().parent / included[2]).exists():
            lines[i] = f'#include "{near.resolve()}"'
    return lines, begin


def main() -> None:
    output, *sources = map(pathlib.Path, sys.argv[1:])
    united = []
    for source in sources:
        lines, begin = parts(source)
        if any(line.startswith("#if") for line in lines[:begin]):
            sys.exit(f"{source}: an #if before the last #include would be torn apart")
        name = re.sub(r"\W", "_", source.stem)
        where = source.resolve()
        united += [f'#line 1 "{where}"', *lines[:begin]]
        united += [f"namespace in_{name} {{", f'#line {begin + 1} "{where}"', *lines[begin:], f"}}  // {name}"]
    output.write_text("\n".join(united) + "\n")


main()
