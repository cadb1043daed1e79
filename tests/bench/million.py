#!/usr/bin/env python3
"""A million connections; see tests/bench/million, which builds what this needs."""

import concurrent.futures
import json
import os
import queue
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time

WANTED = int(os.environ.get("CONNECTIONS", "1000000"))
ACTIVE_PERCENT = 1
ACTIVE_S = float(os.environ.get("SECONDS_ACTIVE", "60"))
IDLE_S = 10
STAGE_S = 600  # no stage may take longer
SPARE_DESCRIPTORS = 64  # of a process, for itself
PROBE = 20_000  # connections that show what one costs
RESERVE_BYTES = 1 << 30  # of memory, for everybody else
EACH_SOURCE = 10_000  # connections from one address; as load/connection.hpp has it
AT_ONCE = 4  # clients that connect or echo at the same time


def say(text):
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", file=sys.stderr, flush=True)


def stop_with(text):
    sys.exit(f"million: {text}")


# --- what the system says ---


def read(path):
    with open(path) as file:
        return file.read()


def meminfo():
    return {name: int(value.split()[0]) * 1024
            for name, value in (line.split(":") for line in read("/proc/meminfo").splitlines())}


def kernel_memory():
    """What the kernel has taken for itself. The rest is what processes see, and caches of files."""
    info = meminfo()
    return sum(info[name] for name in ("Slab", "KernelStack", "PageTables", "VmallocUsed", "Percpu"))


def cpu_seconds(pids):
    """Of processes, from the scheduler's own count, which has no coarse ticks."""
    return sum(int(read(f"/proc/{pid}/schedstat").split()[0]) for pid in pids) / 1e9


def proportional_bytes(pids):
    total = 0
    for pid in pids:
        total += int(re.search(r"^Pss:\s+(\d+)", read(f"/proc/{pid}/smaps_rollup"), re.M)[1]) * 1024
    return total


def wait_until_quiet(pids, limit_s=60):
    """Until they use next to no CPU."""
    before = cpu_seconds(pids)
    for _ in range(int(limit_s / 0.5)):
        time.sleep(0.5)
        now = cpu_seconds(pids)
        if now - before < 0.005:
            return
        before = now
    say("it does not become quiet")


# --- the two sides ---


class Servers:
    """servers/patient_echo: by prefork, processes that share a listener."""

    def __init__(self, programs, processes, workers):
        self.errors = tempfile.TemporaryFile()
        self.parent = subprocess.Popen(
            [os.path.join(programs, "patient_echo"), str(workers), str(processes)],
            stdout=subprocess.PIPE, stderr=self.errors)
        self.first_line = self.parent.stdout.readline().decode().strip()
        found = re.search(r"listening on ([\d.]+):(\d+)", self.first_line)
        if not found:
            stop_with(f"the server did not start: {self.first_line} {self.said()}")
        self.ip, self.port = found.groups()
        self.pids = self.wait_for(processes)
        wait_until_quiet(self.pids)

    def wait_for(self, processes):
        if processes == 1:
            return [self.parent.pid]
        for _ in range(600):
            pids = read(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children").split()
            if len(pids) == processes:
                return pids
            time.sleep(0.1)
        stop_with(f"there are not {processes} server processes: {self.said()}")

    def said(self):
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").strip()

    def check(self):
        if self.parent.poll() is not None or not all(os.path.exists(f"/proc/{p}") for p in self.pids):
            stop_with(f"a server process has ended: {self.said()}")

    def stop(self):
        self.parent.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        if self.parent.poll() is None:
            self.parent.send_signal(signal.SIGTERM)  # at once
        try:
            self.parent.wait(60)
        except subprocess.TimeoutExpired:
            self.parent.kill()  # its children end with it
            self.parent.wait()


class Client:
    """tests/bench/load/swarm: a process with addresses of its own."""

    def __init__(self, programs, servers, source, count):
        self.process = subprocess.Popen(
            [os.path.join(programs, "swarm"), servers.ip, servers.port, str(source), str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.count = count
        self.answers = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put(None)

    def ask(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        try:
            answer = self.answers.get(timeout=STAGE_S)
        except queue.Empty:
            answer = None
        if answer is None:
            raise RuntimeError(f"a client did not do: {what}")
        return answer

    def stop(self):
        self.process.kill()
        self.process.wait()


def ask_all(clients, what, at_once):
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        try:
            answers = list(pool.map(lambda c: c.ask(what), clients))
        except RuntimeError as failed:
            for client in clients:
                client.stop()
            stop_with(str(failed))
    return answers, time.monotonic() - begun


# --- what fits ---


def descriptors_each():
    """Connections a process can hold."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # inherited
    return hard - SPARE_DESCRIPTORS


def within_limits(wanted, each):
    """Connections that the limits on descriptors and processes allow."""
    used, _, most = map(int, read("/proc/sys/fs/file-nr").split())
    fits = wanted
    # Both ends are here, and each of the processes has some files.
    by_files = int((most - used - 10_000) / (2 + 2 * SPARE_DESCRIPTORS / each))
    if by_files < fits:
        fits = by_files
        print(f"Scaled down to {fits:,}: the system allows {most:,} open files "
              "(/proc/sys/fs/file-max).\n")
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    if processes not in (-1, resource.RLIM_INFINITY) and 2 * fits / each > processes / 2:
        fits = int(processes / 4 * each)
        print(f"Scaled down to {fits:,}: there may be {processes:,} processes.\n")
    return fits


class Run:
    """`count` connections, from the first to the last measurement."""

    def __init__(self, programs, count, each):
        self.count, self.programs = count, programs
        self.processes = -(-count // each)
        self.each = -(-count // self.processes)
        self.servers, self.clients = None, []

    def __enter__(self):
        say(f"{self.count:,} connections to {self.processes} server processes")
        few = Servers(self.programs, self.processes, 16)
        self.bytes_few = proportional_bytes(few.pids)
        few.stop()
        self.kernel_before = kernel_memory()
        # A full process takes no more, so there must be a worker for each connection.
        self.servers = Servers(self.programs, self.processes, self.each + 16)
        sources = -(-self.each // EACH_SOURCE)
        for number in range(self.processes):
            mine = min(self.each, self.count - number * self.each)
            if mine > 0:
                source = 2 + number * sources  # from 127.0.0.2 on
                self.clients.append(Client(self.programs, self.servers, source, mine))
        return self

    def __exit__(self, *_):
        say("stopping")
        for client in self.clients:
            client.stop()
        if self.servers:
            self.servers.stop()

    def ask(self, what, at_once=AT_ONCE):
        answers, took = ask_all(self.clients, what, at_once)
        self.servers.check()
        say(f"{what}: {took:.1f} s")
        return answers, took

    def memory(self):
        """Bytes a connection: of the servers, of the clients, and the kernel's for both ends."""
        wait_until_quiet(self.servers.pids)
        servers = proportional_bytes(self.servers.pids)
        clients = proportional_bytes([c.process.pid for c in self.clients])
        return {"server": (servers - self.bytes_few) / self.count, "client": clients / self.count,
                "kernel": (kernel_memory() - self.kernel_before) / self.count}

    def idle_cpu(self):
        """Per cent of one core, of all servers."""
        before, begun = cpu_seconds(self.servers.pids), time.monotonic()
        time.sleep(IDLE_S)
        return (cpu_seconds(self.servers.pids) - before) / (time.monotonic() - begun) * 100


def quantile(histogram, part):
    left = part * sum(count for _, count in histogram)
    for value, count in histogram:
        left -= count
        if left <= 0:
            return value / 1000
    return histogram[-1][0] / 1000


def merge(answers):
    counts = {}
    for answer in answers:
        for value, count in answer["ns"]:
            counts[value] = counts.get(value, 0) + count
    return sorted(counts.items())


def fits_in_memory(programs, wanted, each):
    """Connections there is memory for, from what some of them cost."""
    if wanted <= PROBE:
        return wanted
    with Run(programs, min(PROBE, each), each) as probe:
        probe.ask("connect")
        probe.ask("echo")
        costs = sum(probe.memory().values())
    wait_until_quiet([os.getpid()], 5)
    room = meminfo()["MemAvailable"] - RESERVE_BYTES
    fits = int(room / (costs * 1.1))  # pages are not used to the last byte
    say(f"a connection costs {costs:,.0f} bytes in all, and there is room for {fits:,}")
    if fits >= wanted:
        return wanted
    print(f"Scaled down to {fits:,}: both ends of a connection and what the kernel keeps for them cost "
          f"{costs:,.0f} bytes, and there are {room / 2**30:.1f} GiB for them.\n")
    return fits


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended
    programs = sys.argv[1]
    each = descriptors_each()
    count = fits_in_memory(programs, within_limits(WANTED, each), each)
    rows = []
    with Run(programs, count, each) as run:
        _, took = run.ask("connect")
        silent = run.memory()
        idle = run.idle_cpu()
        rows.append(["connected, all idle", f"{took:.0f} s, {count / took:,.0f} connections/s"])
        rows.append(["CPU of all servers while idle", f"{idle:.2f} % of a core"])
        _, took = run.ask("echo")
        after = run.memory()
        rows.append(["each echoes once", f"{took:.0f} s, {count / took:,.0f} messages/s"])
        rows.append(["CPU of all servers while idle after that", f"{run.idle_cpu():.2f} % of a core"])
        before, begun = cpu_seconds(run.servers.pids), time.monotonic()
        answers, _ = run.ask(f"active {ACTIVE_PERCENT} {ACTIVE_S}", at_once=len(run.clients))
        busy = (cpu_seconds(run.servers.pids) - before) / (time.monotonic() - begun) * 100
        latency = merge(answers)
        replies = sum(n for _, n in latency)
        rows.append([f"{ACTIVE_PERCENT} % active, a message a second each, for {ACTIVE_S:.0f} s",
                     f"{replies:,} replies; p50 {quantile(latency, .5):,.0f} us, p99 "
                     f"{quantile(latency, .99):,.0f} us, p99.9 {quantile(latency, .999):,.0f} us, most "
                     f"{latency[-1][0] / 1000:,.0f} us"])
        rows.append(["CPU of all servers meanwhile", f"{busy:.1f} % of a core"])
        for when, memory in (("never used", silent), ("after one message", after)):
            rows.append([f"bytes of user space a connection, {when}",
                         f"{memory['server']:,.0f} (and {memory['client']:,.0f} of the client's)"])
            rows.append([f"bytes of the kernel's a connection, both ends, {when}",
                         f"{memory['kernel']:,.0f}"])
        print(f"**{count:,} connections**, {run.processes} processes a side. "
              f"`{run.servers.first_line}`\n")
    print("| | |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")
    print()


if __name__ == "__main__":
    BEGAN = time.monotonic()
    main()
