"""Servers, loads, and the figures of all rounds."""

import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time


def say(text):
    print(text, file=sys.stderr, flush=True)


class Failed(Exception):
    pass


def number(value, digits=3):
    if value is None:
        return "-"
    text = f"{value:.{digits}g}"
    if "e" in text or abs(value) >= 1000:
        return f"{value:,.0f}"
    return text


# --- servers ---


class Server:
    """An echo server: a process that prints `... listening on IP:PORT ...` first."""

    def __init__(self, name, label, group, backend, command, env=None, few=None, package=None):
        self.name, self.label, self.group, self.backend = name, label, group, backend
        self.command, self.env, self.package = command, env or {}, package
        self.few = few or command  # the same with few workers

    def start(self, build, workers, few=False):
        words = [w.format(workers=workers) for w in (self.few if few else self.command)]
        return Running(self.name, [os.path.join(build, words[0])] + words[1:], self.env)


class Running:
    def __init__(self, name, command, env):
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors,
                                        env={**os.environ, **env})
        line = self.process.stdout.readline().decode()
        found = re.search(r"listening on ([\d.]+):(\d+)", line)
        if not found:
            self.__exit__()
            raise Failed(f"{name} does not start: {line.strip() or self.said()}")
        self.ip, self.port = found.groups()

    def said(self):
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # They hold nothing that an orderly end would save, and some have none.
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def echo(name, label, program, backend):
    return Server(name, label, "coax", backend, [program, "127.0.0.1", "0", "{workers}", "1"],
                  env={"COAX_BACKEND": backend}, few=[program, "127.0.0.1", "0", "16", "1"])


SERVERS = [
    Server("raw_uring", "raw C io_uring, send by ring", "raw", "io_uring", ["raw_uring", "sqe"],
           package="liburing-dev"),
    Server("raw_uring_call", "raw C io_uring, send(2)", "raw", "io_uring", ["raw_uring", "call"],
           package="liburing-dev"),
    Server("raw_epoll", "raw C epoll", "raw", "epoll", ["raw_epoll"]),
    echo("coax_uring", "**coax, io_uring**", "bench_echo", "io_uring"),
    echo("coax_epoll", "**coax, epoll**", "bench_echo", "epoll"),
    echo("coax_buffered_uring", "coax, io_uring, own buffer", "bench_echo_buffered", "io_uring"),
    echo("coax_buffered_epoll", "coax, epoll, own buffer", "bench_echo_buffered", "epoll"),
    Server("libuv", "libuv", "peer", "epoll", ["uv_echo"], package="libuv1-dev"),
    Server("asio", "Asio", "peer", "epoll", ["asio_echo"], package="libasio-dev"),
    Server("libevent", "libevent", "peer", "epoll", ["event_echo"], package="libevent-dev"),
]
SPIN = Server("coax_spin", "coax, io_uring, `spin`", "spin", "io_uring", ["coax_spin", "50"])
WITHOUT_SPIN = Server("coax_no_spin", "the same without", "spin", "io_uring", ["coax_spin", "0"])


# --- loads ---


class Load:
    """One way of loading the servers, and how long and how often in `quick` and `full`."""

    def __init__(self, key, section, title, arguments, quick, full, servers=None):
        self.key, self.section, self.title, self.arguments = key, section, title, arguments
        self.quick, self.full = quick, full  # (seconds, rounds)
        self.servers = servers or (lambda s: s.group != "spin")

    def is_sliced(self):
        """Many short rounds, between which the servers go on running."""
        return self.section in ("lockstep", "firehose") or self.key == "churn"


def is_coax(server):
    return server.group == "coax"


def is_main(server):
    return not server.name.startswith("coax_buffered")


LOADS = [
    Load("l1", "lockstep", "1 x 64 B", ["lockstep", "--connections", "1"], (0.05, 5), (0.05, 60)),
    Load("l64", "lockstep", "64 x 64 B", ["lockstep"], (0.05, 5), (0.05, 60)),
    Load("l512", "lockstep", "512 x 64 B", ["lockstep", "--connections", "512"], (0.05, 5), (0.05, 60)),
    Load("l16k", "lockstep", "64 x 16 KB", ["lockstep", "--size", "16384"], (0.05, 5), (0.05, 60)),
    Load("l16", "lockstep", "64, 16 in flight", ["lockstep", "--depth", "16"], (0.05, 5), (0.05, 60)),
    Load("c64", "closed", "64 x 64 B", ["closed"], (0.3, 2), (1.2, 5)),
    Load("c512", "closed", "512 x 64 B", ["closed", "--connections", "512"], (0.3, 2), (1.2, 3)),
    Load("seen", "observed", "64 x 64 B, lockstep", ["lockstep", "--observe"], (0.4, 1), (2, 3)),
    Load("seen_closed", "observed", "64 x 64 B, closed loop", ["closed", "--observe"], (0.2, 1), (1, 3)),
    Load("c1", "spin", "1 x 64 B", ["closed", "--connections", "1"], (0.3, 2), (1, 5),
         lambda s: s.group == "spin" or s.name in ("raw_uring", "raw_epoll")),
    Load("c1w", "spin", "1 x 64 B, the load never sleeps",
         ["closed", "--connections", "1", "--watch"], (0.3, 2), (1, 5),
         lambda s: s.group == "spin" or s.name in ("raw_uring", "raw_epoll")),
    Load("open", "open", "64 connections, 10,000 messages/s", ["open", "--rate", "10000"],
         (0.3, 1), (1.5, 3), lambda s: s.group != "spin" and is_main(s)),
    Load("churn", "churn", "connect, one echo, close", ["churn"], (0.05, 3), (0.05, 30),
         lambda s: s.group != "spin" and is_main(s)),
    Load("churn100k", "churn", "100,000 of them", ["churn", "--count", "100000"], None, (1, 1),
         lambda s: is_coax(s) and is_main(s)),
    Load("ping", "firehose", "without", ["ping", "--connections", "100", "--rate", "5000"],
         (0.15, 3), (0.15, 30), lambda s: s.group != "spin" and is_main(s)),
    Load("hose", "firehose", "beside it",
         ["ping", "--connections", "100", "--rate", "5000", "--firehose"],
         (0.15, 3), (0.15, 30), lambda s: s.group != "spin" and is_main(s)),
    Load("idle", "idle", "idle connections", ["idle"], (0.3, 1), (2, 2)),
]
IDLE_CONNECTIONS = {"quick": 2000, "full": 10000}
WARM_UP_S = {"quick": 0.05, "full": 0.1}
LIMIT_S = {"quick": 75, "full": 13 * 60}  # no round begins later
SECTIONS = ["lockstep", "observed", "closed", "spin", "open", "churn", "firehose", "idle", "micro", "compile"]


class Bench:
    def __init__(self, arguments):
        self.build, self.mode = arguments.build, arguments.mode
        self.began = time.monotonic()
        known = {s.name for s in SERVERS} | set(SECTIONS)
        for name in arguments.name:
            if name not in known:
                sys.exit(f"there is nothing named {name}; there are: {' '.join(sorted(known))}")
        self.sections = [s for s in SECTIONS if s in arguments.name] or SECTIONS
        named = [s for s in SERVERS if s.name in arguments.name]
        self.left_out, self.failures = [], []
        self.servers = [s for s in named or SERVERS if self.is_here(s)]
        wants_spin = "spin" in self.sections and not named
        self.spin = [SPIN, WITHOUT_SPIN] if wants_spin and self.is_here(SPIN) else []
        self.figures = {}  # (load key, server name) -> [figures of a round or None]

    def is_here(self, server):
        if not os.path.exists(os.path.join(self.build, server.command[0])):
            if server.package:
                self.left_out.append(f"{server.label}: {server.package} is not installed")
            return False
        try:
            with server.start(self.build, 1):
                return True
        except Failed as failed:  # io_uring may be refused here
            self.left_out.append(str(failed))
            return False

    def late(self, first_round):
        """The first round is let go on for half as long again: a figure of each is worth waiting for."""
        return time.monotonic() - self.began > LIMIT_S[self.mode] * (1.5 if first_round else 1)

    # --- measuring ---

    def run_all(self):
        plan = [(load, getattr(load, self.mode)) for load in LOADS if load.section in self.sections]
        plan = [(load, how) for load, how in plan if how]
        for load, (seconds, times) in plan:
            if load.is_sliced():
                self.run_sliced(load, seconds, times)
        plan = [(load, how) for load, how in plan if not load.is_sliced()]
        rounds = max((how[1] for _, how in plan), default=0)
        for number in range(rounds):
            for load, (seconds, times) in plan:
                if number >= times:
                    continue
                if self.late(number == 0):
                    if number == 0:
                        self.left_out.append(f"{load.section}, {load.title}: there was no time for it")
                    continue
                for server in self.servers + self.spin:
                    if load.servers(server):
                        self.run_one(number, load, seconds, server)

    def run_sliced(self, load, seconds, times):
        """How fast a shared machine is changes from one second to the next: what is compared runs within
        one, in a new order each time. And where it takes a CPU away for a millisecond several times a second,
        most short rounds are spared, while no long one is."""
        with contextlib.ExitStack() as stack:
            running = []
            for server in self.servers + self.spin:
                if not load.servers(server):
                    continue
                try:
                    running.append((server, stack.enter_context(server.start(self.build, 1024))))
                except Failed as failed:
                    self.failures.append(f"{server.label}, {load.section} {load.title}: {failed}")
            for number in range(times):
                for server, process in random.sample(running, len(running)):
                    self.run_one(number, load, seconds, server, process)

    def run_one(self, number, load, seconds, server, running=None):
        rounds = self.figures.setdefault((load.key, server.name), [])
        try:
            figures = self.measure(load, seconds, server, running)
        except Failed as failed:
            figures = None
            self.failures.append(f"{server.label}, {load.section} {load.title}: {failed}")
        rounds.append(figures)
        say(f"{time.monotonic() - self.began:6.1f} s  round {number + 1}  {load.section:8}  "
            f"{load.title:34}  {server.name:20}  {json.dumps(figures)}")

    def measure(self, load, seconds, server, running=None):
        if running is not None:
            return self.load(load, running, ["--seconds", str(seconds), "--warm-up", "0.02"])
        more = ["--seconds", str(seconds), "--warm-up", str(WARM_UP_S[self.mode])]
        workers = 1024
        if load.key == "idle":
            more += ["--connections", str(IDLE_CONNECTIONS[self.mode])]
            workers = IDLE_CONNECTIONS[self.mode] + 64
        with server.start(self.build, workers) as running:
            figures = self.load(load, running, more)
        if load.key == "idle":
            # What workers cost is part of what connections cost.
            with server.start(self.build, workers, few=True) as running:
                few = self.load(load, running, ["--connections", "1", "--seconds", "0"])
            for when in ("silent", "after_echo"):
                kept = figures[f"resident_{when}"] - few[f"resident_{when}"]
                figures[f"bytes_{when}"] = kept / (IDLE_CONNECTIONS[self.mode] - 1)
        return figures

    def load(self, load, running, more):
        command = [os.path.join(self.build, "load"), load.arguments[0], running.ip, running.port,
                   str(running.process.pid)] + load.arguments[1:] + more
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            raise Failed("it did not end in 120 s") from None
        if done.returncode != 0:
            raise Failed(f"{done.stderr.strip()} {running.said()}".strip())
        return json.loads(done.stdout)

    # --- figures ---

    def values(self, load, server, what):
        return [f[what] for f in self.figures.get((load, server), []) if f and f.get(what) is not None]

    def median(self, load, server, what):
        values = self.values(load, server, what)
        return statistics.median(values) if values else None

    def best_raw(self, load, what, backend=None):
        """The raw server that needs least."""
        found = [(self.median(load, s.name, what), s.name) for s in self.servers
                 if s.group == "raw" and backend in (None, s.backend)]
        found = [f for f in found if f[0] is not None]
        return min(found)[1] if found else None

    def ratio(self, load, server, other, what):
        """The median of the ratios within a round."""
        if other is None:
            return None
        pairs = zip(self.figures.get((load, server), []), self.figures.get((load, other), []))
        ratios = [a[what] / b[what] for a, b in pairs if a and b and b[what]]
        return statistics.median(ratios) if ratios else None

    def spread(self, load, server, what, digits=3, scale=1):
        """`median [least-most]`"""
        values = [v * scale for v in self.values(load, server, what)]
        if not values:
            return "-"
        text = number(statistics.median(values), digits)
        if len(values) > 1:
            text += f" [{number(min(values), digits)}-{number(max(values), digits)}]"
        return text

    def with_ratio(self, load, server, what, digits=3):
        ratio = self.ratio(load, server, self.best_raw(load, what), what)
        text = self.spread(load, server, what, digits)
        return text if ratio is None else f"{text} x{ratio:.2f}"

    def has(self, *loads):
        return any(key[0] in loads and any(rounds) for key, rounds in self.figures.items())

    def rows(self, *loads):
        return [s for s in self.servers + self.spin
                if any(any(self.figures.get((load, s.name), [])) for load in loads)]
