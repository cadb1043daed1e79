"""Draws the CPU a message as an SVG, by gnuplot."""

import shutil
import subprocess
import tempfile

from measuring import LOADS, number, say

CHART_LABELS = {"raw_uring": "raw C\\nio_uring", "raw_uring_call": "raw C io_uring\\nwith send(2)",
                "raw_epoll": "raw C\\nepoll", "coax_uring": "coax\\nio_uring",
                "coax_epoll": "coax\\nepoll", "libuv": "libuv", "asio": "Asio", "libevent": "libevent"}


def chart(b, path):
    """CPU a message in lockstep, as an SVG by gnuplot. What is far beyond the others is cut off."""
    loads = [load for load in LOADS if load.key in ("l64", "l512", "l16k")]
    servers = [s for s in b.rows("l64") if s.name in CHART_LABELS]
    if not servers or not shutil.which("gnuplot"):
        say("no chart: " + ("gnuplot is not installed" if servers else "lockstep was not run"))
        return
    values = {(i, j): b.median(load.key, s.name, "cpu_us")
              for i, s in enumerate(servers) for j, load in enumerate(loads)}
    near = [v for (i, _), v in values.items() if v is not None and servers[i].group != "peer"]
    top = 1.8 * max(near or [v for v in values.values() if v is not None])
    labels = "\n".join(
        f"set label '{number(v)}' at {i + (j - 1) * 0.25:.2f},{min(v, top * 0.96):.4g} center "
        "offset 0,0.6 font ',9' front" for (i, j), v in values.items() if v is not None)
    with tempfile.NamedTemporaryFile("w", suffix=".dat") as data:
        for i, s in enumerate(servers):
            cells = [str(values[i, j] or "NaN") for j in range(len(loads))]
            data.write(f'"{CHART_LABELS[s.name]}" ' + " ".join(cells) + "\n")
        data.flush()
        columns = ", ".join(f"'{data.name}' using {j + 2}:xtic(1) title '{load.title}' lc '{colour}'"
                            for j, (load, colour) in enumerate(
                                zip(loads, ("#1b6ca8", "#7fb3d5", "#d98e04"))))
        script = f"""
            set terminal svg noenhanced size 1000,440 font 'sans-serif,12' background '#ffffff'
            set output '{path}'
            set title 'Server CPU a message (us), echo over loopback TCP in lockstep: less is better'
            set style data histogram
            set style histogram clustered gap 1
            set style fill solid noborder
            set boxwidth 0.9
            set yrange [0:{top:.4g}]
            set grid ytics lc '#dddddd'
            set key top left horizontal
            set tics nomirror scale 0
            set border 3 lc '#888888'
            set bmargin 4
            {labels}
            plot {columns}
        """
        subprocess.run(["gnuplot"], input=script, text=True, check=True)
    say(f"the chart is {path}")
