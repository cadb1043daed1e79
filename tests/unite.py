#!/usr/bin/env python3
"""Writes one C++ source out of several: unite.py OUTPUT SOURCE...

Compiling a test is mostly compiling the headers it includes, and these are the same for all. Each source keeps its
names to itself, in a namespace of its own, and its line numbers.
"""

import pathlib
import re
import sys


def parts(source: pathlib.Path) -> tuple[list[str], int]:
    """The lines of a source, and how many of them belong to its beginning, which ends with the last #include."""
    lines = source.read_text().splitlines()
    includes = [i for i, line in enumerate(lines) if line.startswith("#include")]
    return lines, includes[-1] + 1 if includes else 0


def main() -> None:
    output, *sources = map(pathlib.Path, sys.argv[1:])
    united = []
    for source in sources:
        lines, begin = parts(source)
        if any(line.startswith("#if") for line in lines[:begin]):
            sys.exit(f"{source}: an #if before the last #include would be torn apart")
        name = re.sub(r"\W", "_", source.stem)
        where = source.resolve()
        for i, line in enumerate(lines[:begin]):
            quoted = re.match(r'#include "(.*)"', line)
            if quoted and (where.parent / quoted[1]).exists():
                line = f'#include "{(where.parent / quoted[1]).resolve()}"'
            united += [line] if i else [f'#line 1 "{where}"', line]
        united += [f"namespace in_{name} {{", f'#line {begin + 1} "{where}"', *lines[begin:], f"}}  // {name}"]
    output.write_text("\n".join(united) + "\n")


main()
