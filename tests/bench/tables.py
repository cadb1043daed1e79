"""Prints the figures as tables in Markdown."""

import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time

from measuring import IDLE_CONNECTIONS, LOADS, Failed, number

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def machine():
    model, virtual = "unknown processor", ""
    with open("/proc/cpuinfo") as info:
        for line in info:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            if name.strip() == "flags" and "hypervisor" in value.split():
                virtual = " (a virtual machine)"
    return f"{os.cpu_count()} x {model}{virtual}, Linux {platform.release()}"


def system_call_ns():
    """What a system call that does nothing costs: much depends on it."""
    times = 100_000

    def each(function):
        begun = time.thread_time()
        for _ in range(times):
            function()
        return (time.thread_time() - begun) / times * 1e9

    return min(each(os.getppid) for _ in range(5)) - min(each(sys.is_finalizing) for _ in range(5))


def cpu_of_children(action):
    """In seconds: what else the machine does shall not count."""

    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    action()
    return used() - before


def head(bench, arguments, cxx):
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout
    print(f"`CXX={cxx} tests/bench/run {' '.join(arguments)}`, "
          f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC. {machine()}, "
          f"{version.splitlines()[0]}, -O2 -DNDEBUG. A system call that does nothing takes "
          f"{system_call_ns():.0f} ns. Loopback TCP.\n")
    for word in bench.left_out:
        print(f"Left out: {word}.\n")


def lockstep_table(b):
    loads = [load for load in LOADS if load.section == "lockstep"]
    print("**Server CPU a message (us), in lockstep** on one core: median [least-most], and the ratio "
          "to the best raw C server of the column.\n")
    table(["server"] + [load.title for load in loads],
          [[s.label] + [b.with_ratio(load.key, s.name, "cpu_us") for load in loads]
           for s in b.rows(*(load.key for load in loads))])


def observed_table(b):
    print("**Observed**, 64 x 64 B. User time is that spent in the server's own code and libraries; "
          "looking and counting slow it down.\n")
    table(["server", "user time/message (ns)", "system calls/message", "the same in a closed loop"],
          [[s.label, b.spread("seen", s.name, "user_ns"), b.spread("seen", s.name, "syscalls"),
            b.spread("seen_closed", s.name, "syscalls")] for s in b.rows("seen")])


def closed_table(b):
    print("**Closed loop**, server and load on a core each.\n")
    table(["server", "64 x 64 B: CPU/message (us)", "messages/s", "p50 (us)", "p99 (us)",
           "512 x 64 B: CPU/message (us)", "messages/s"],
          [[s.label, b.with_ratio("c64", s.name, "cpu_us"), b.spread("c64", s.name, "rate"),
            number(b.median("c64", s.name, "p50_us")), number(b.median("c64", s.name, "p99_us")),
            b.with_ratio("c512", s.name, "cpu_us"), b.spread("c512", s.name, "rate")]
           for s in b.rows("c64", "c512")])


def spin_table(b):
    print("**One connection**, server and load on a core each. A load that sleeps until its reply is "
          "there pays for a wake-up itself; one that never sleeps shows the server's alone.\n")
    table(["server", "messages/s", "p50 (us)", "load never sleeps: messages/s", "p50 (us)"],
          [[s.label] + [cell for load in ("c1", "c1w")
                        for cell in (b.spread(load, s.name, "rate"),
                                     number(b.median(load, s.name, "p50_us")))]
           for s in b.rows("c1", "c1w")])


def open_table(b):
    print("**Open loop**: 10,000 messages/s on 64 connections, timed from when each was meant to be "
          "sent.\n")
    table(["server", "p50 (us)", "p99 (us)", "p99.9 (us)", "CPU/message (us)"],
          [[s.label] + [b.spread("open", s.name, w) for w in ("p50_us", "p99_us", "p999_us", "cpu_us")]
           for s in b.rows("open")])


def churn_table(b):
    print("**Connect, one echo, close**, in lockstep.\n")
    table(["server", "CPU/connection (us)", "descriptors left"],
          [[s.label, b.with_ratio("churn", s.name, "cpu_us"),
            number(max(b.values("churn", s.name, "descriptors_left") +
                       b.values("churn100k", s.name, "descriptors_left"), default=None))]
           for s in b.rows("churn")])


def firehose_table(b):
    print("**100 pinging connections** (5,000 messages/s in all) without and beside one connection "
          "that sends as much as it can.\n")
    table(["server", "p99 without (us)", "p99 beside it (us)", "ratio", "the one's MB/s"],
          [[s.label, b.spread("ping", s.name, "p99_us"), b.spread("hose", s.name, "p99_us"),
            number(firehose_ratio(b, s.name), 2), b.spread("hose", s.name, "firehose_mb_s")]
           for s in b.rows("hose")])


def firehose_ratio(b, server):
    without, beside = b.median("ping", server, "p99_us"), b.median("hose", server, "p99_us")
    return beside / without if without and beside else None


def idle_table(b):
    count = IDLE_CONNECTIONS[b.mode]
    print(f"**{count:,} idle connections**: bytes of RSS each, workers included, over a process with "
          "few workers and one connection that did the same.\n")
    table(["server", "bytes, never used", "bytes, after one message", "CPU (%)"],
          [[s.label, b.spread("idle", s.name, "bytes_silent", 4),
            b.spread("idle", s.name, "bytes_after_echo", 4),
            b.spread("idle", s.name, "idle_cpu_percent")] for s in b.rows("idle")])


MICRO = {
    "create_run_destroy": "create, run, destroy a task",
    "create_run_destroy_least": "... that can do nothing else",
    "spawn_join": "spawn and join",
    "yield": "yield, 256 tasks",
    "hand_off": "hand-off: reserve, hand over, park",
    "channel": "channel: send and receive",
    "mutex": "mutex: lock and unlock",
    "timer_set_cancel": "timer: set and cancel",
    "event_wait": "wait for an event that comes next turn",
    "event_wait_within": "... under `within`",
}


def run_json(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise Failed(f"{os.path.basename(command[0])}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def micro_table(b):
    seconds = {"quick": "0.02", "full": "0.2"}[b.mode]
    figures = run_json([os.path.join(b.build, "micro"), seconds])
    frames = run_json([os.path.join(b.build, "frame_size")])
    loops = list(figures)
    print("**Coroutines** (ns). `alone` is a loop without a kernel; on io_uring and epoll a turn of 256 "
          "tasks shares one look at the kernel, and a timer reads the clock.\n")
    table(["", *loops], [[title] + [number(figures[loop].get(name)) for loop in loops]
                         for name, title in MICRO.items()
                         if any(name in figures[loop] for loop in loops)])
    allocations = {f"{loop}, {name.removeprefix('allocations_')}": figures[loop][name]
                   for loop in loops for name in figures[loop] if name.startswith("allocations")}
    print("Allocations a message, both ends in one process: "
          + ", ".join(f"{number(v)} ({k})" for k, v in allocations.items())
          + f". A trivial task's frame: {frames['trivial']} bytes; that of an echo worker, without its "
            f"buffer: {frames['worker']} bytes"
          + (f", by `receive`: {frames['receiving_worker']} bytes" if frames["receiving_worker"] else "")
          + ".\n")
    return figures, frames, allocations


def compile_table(b, cxx):
    flags = [cxx, "-std=c++20", "-O2", "-I" + os.path.join(TOP, "include"), "-x", "c++"]
    rounds = {"quick": 2, "full": 5}[b.mode]
    figures = {}
    for name in ("<liburing.h>", "<coax/coax.hpp>"):
        source = f"#include {name}\n".encode()

        def compiled(how, source=source):
            done = subprocess.run(flags + how + ["-"], input=source, capture_output=True)
            if done.returncode != 0:
                raise Failed(f"{name} does not compile: {done.stderr.decode()}")
            return done.stdout

        lines = compiled(["-E"]).count(b"\n")
        figures[name] = lines, min(cpu_of_children(lambda: compiled(["-c", "-o", "/dev/null"])) for _ in range(rounds))
    least = figures["<liburing.h>"][1]
    print("**Compiling** a file that only includes it, `-O2`: CPU time, the best of some.\n")
    table(["include", "lines", "seconds", "ratio"],
          [[f"`{name}`", number(lines), f"{seconds:.2f}", f"{seconds / least:.1f}"]
           for name, (lines, seconds) in figures.items()])
    return figures
