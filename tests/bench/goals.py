"""Holds the figures against what coax is to reach."""

from measuring import LOADS, SPIN, number
from tables import MICRO, firehose_ratio, table


def goals_table(b, micro, compiled, cxx):
    rows = []

    def goal(what, value, limit, text=None, at_least=False):
        if value is not None:
            met = value >= limit if at_least else value <= limit
            rows.append([what, text or number(value), ("at least " if at_least else "at most ")
                         + number(limit), "met" if met else "**missed**"])

    for server, backend, limits in (("coax_uring", "io_uring", (1.03, 80, 0.06)),
                                    ("coax_epoll", "epoll", (1.05, 220, 2.1))):
        for load in LOADS:
            if load.section == "lockstep" and load.key != "l1":
                limit = limits[0] if load.key in ("l64", "l512") else 1.05
                any_raw = b.ratio(load.key, server, b.best_raw(load.key, "cpu_us"), "cpu_us")
                same = b.ratio(load.key, server, b.best_raw(load.key, "cpu_us", backend), "cpu_us")
                if same is not None:
                    goal(f"{backend}, {load.title}: CPU a message, to the best raw C server of this "
                         f"backend (of either)", same, limit, f"{same:.2f} ({any_raw:.2f})")
        goal(f"{backend}: user time a message (ns)", b.median("seen", server, "user_ns"), limits[1])
        goal(f"{backend}: system calls a message", b.median("seen", server, "syscalls"), limits[2])
        goal(f"{backend}: CPU a new connection, to the best raw C server of this backend",
             b.ratio("churn", server, b.best_raw("churn", "cpu_us", backend), "cpu_us"), 1.08)
        left = b.values("churn", server, "descriptors_left") + b.values("churn100k", server,
                                                                        "descriptors_left")
        goal(f"{backend}: descriptors left after new connections", max(left, default=None), 0)
        goal(f"{backend}: bytes an idle connection, after one message",
             b.median("idle", server, "bytes_after_echo"), 300 if "clang" in cxx else 512)
        goal(f"{backend}: CPU while idle (%)", b.median("idle", server, "idle_cpu_percent"), 0.1)
        goal(f"{backend}: p99 beside a firehose, to that without", firehose_ratio(b, server), 3)
    goal("io_uring, one connection: CPU a message, to raw io_uring that sends by ring",
         b.ratio("l1", "coax_uring", "raw_uring", "cpu_us"), 0.97)
    for load, title in (("c1", ""), ("c1w", " (the load never sleeps)")):
        goal(f"io_uring, one connection: rate with `spin`, to that of raw io_uring{title}",
             b.ratio(load, SPIN.name, "raw_uring", "rate"), 2.5, at_least=True)
    if micro:
        figures, frames, allocations = micro
        alone = figures["alone"]
        goal("allocations a message", max(allocations.values()), 0)
        for name, limit in (("create_run_destroy", 7), ("yield", 5), ("spawn_join", 20),
                            ("hand_off", 30)):
            goal(f"{MICRO[name]} (ns)", alone[name], limit)
        for loop in figures:
            within = figures[loop]["event_wait_within"] - figures[loop]["event_wait"]
            goal(f"`within` around a wait, {loop} (ns)", within, 30)
        goal("a trivial task's frame (bytes)", frames["trivial"], 96)
    if compiled:
        lines, seconds = compiled["<coax/coax.hpp>"]
        goal("include all of coax: lines", lines, 115_000)
        goal("include all of coax: time, to `<liburing.h>` alone",
             seconds / compiled["<liburing.h>"][1], 3)
    peers_table(b, rows)
    if rows:
        print("**Goals.**\n")
        table(["goal", "measured", "wanted", ""], rows)


def peers_table(b, rows):
    """Is each backend of coax ahead of every peer in every column?"""
    columns = [(load.key, "cpu_us", f"{load.section} {load.title}") for load in LOADS
               if load.key in ("l1", "l64", "l512", "l16k", "l16", "c64", "c512", "churn")]
    columns += [("seen", "user_ns", "user time"), ("open", "p99_us", "open loop p99"),
                ("hose", "p99_us", "p99 beside a firehose"), ("idle", "bytes_after_echo", "idle memory")]
    for coax in ("coax_uring", "coax_epoll"):
        behind = []
        for load, what, title in columns:
            own = b.median(load, coax, what)
            for peer in b.servers:
                theirs = b.median(load, peer.name, what) if peer.group == "peer" else None
                if own is not None and theirs is not None and theirs < own:
                    behind.append(f"{peer.label} in {title} ({number(theirs)} to {number(own)})")
        if any(b.median(load, coax, what) is not None for load, what, _ in columns) and any(
                s.group == "peer" for s in b.servers):
            rows.append([f"{coax.replace('_', ', ')}: ahead of libuv, Asio and libevent in every column",
                         "behind " + "; ".join(behind) if behind else "ahead in all", "ahead",
                         "**missed**" if behind else "met"])
