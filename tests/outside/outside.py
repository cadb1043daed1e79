#!/usr/bin/env python3
"""Tests of the examples from outside: real processes, real sockets, each backend. Most are of echo;
echo_client, poll and threads are looked for in its directory.

    outside.py PATH_TO_ECHO [name-filter...]

A filter is part of "backend name", as printed. Nothing but the standard library (3.9 or later).
Time is shared with whatever else the machine does, so "eventually" is generous; only processor
time, which others cannot spend for the server, is held to tight bounds.
"""
import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import pty
import random
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

BOTH = ("epoll", "io_uring")
AUTO = (None,)  # COAX_BACKEND unset: the server chooses
DEADLINE = 90   # seconds for one test, whatever happens
PATIENCE = 15   # seconds for anything that happens "eventually"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
TICK = 1 / os.sysconf("SC_CLK_TCK")
NOISE = memoryview(random.Random(1).randbytes((1 << 20) + 1) * 32)
SYS_IO_URING_SETUP = 425  # the same on x86_64 and aarch64
LIBC = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """What the server did wrong. Not an OSError, so that no handler of those can swallow it."""


class Skip(Exception):
    """Why this machine cannot show the behaviour."""


def check(holds, otherwise):
    if not holds:
        raise Failed(otherwise)


def eventually(holds, otherwise, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not holds():
        check(time.monotonic() < end, otherwise)
        time.sleep(0.01)


tests = []
programs = None  # the directory of copies of the examples


def test(name, backends=BOTH, **options):
    """Registers a function of a Server, which is started with these options and ended after."""
    def add(body):
        def with_server(backend):
            with Server(backend, **options) as server:
                body(server)
        test_of_start(name, backends)(with_server)
        return body
    return add


def test_of_start(name, backends=BOTH):
    """Registers a function of a backend, which starts for itself whatever it needs."""
    def add(body):
        tests.extend((f"{backend or 'auto'} {name}", backend, body) for backend in backends)
        return body
    return add


# --- the server -------------------------------------------------------------------------------

def start(args, backend, before_exec=None, stderr=None, program="echo"):
    environment = {k: v for k, v in os.environ.items() if k != "COAX_BACKEND"}
    if backend is not None:
        environment["COAX_BACKEND"] = backend

    def in_child():
        # A background job of a shell that has no job control inherits SIGINT ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if before_exec:
            before_exec()
    return subprocess.Popen([os.path.join(programs, program), *args], env=environment, text=True,
                            preexec_fn=in_child, start_new_session=True, stdout=subprocess.PIPE,
                            stderr=stderr)


def children(parent):
    """The pids of the children of a process, without those that have ended."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
            state, ppid = stat.read().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state not in "ZX":
                found.append(int(pid))
    return sorted(found)


def end_orphans():
    """Ends what is left of a test. As main() asked for, orphans become children of ours."""
    while left := children(os.getpid()):
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def said_by_many():
    """A file for what several processes say while it is read: their place in it is shared with the
    reader, so each must write at its end."""
    file = tempfile.TemporaryFile("w+", errors="replace")
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
    return file


class Server:
    """A running server on a free port. Leaving the block ends it and checks that it went well."""

    running = []

    def __init__(self, backend, tasks=1024, processes=1, before_exec=None, program="echo"):
        self.clients = []
        self.errors = said_by_many()
        counts = {"echo": (tasks, processes), "threads": (processes, tasks)}[program]
        self.process = start(["127.0.0.1", "0", *map(str, counts)], backend, before_exec,
                             self.errors, program)
        Server.running.append(self)
        line = self.process.stdout.readline()
        of_what = {"echo": "process" if processes == 1 else "processes", "threads": "threads"}
        parts = re.fullmatch(rf"{program}: listening on 127\.0\.0\.1:(\d+), {processes} "
                             rf"{of_what[program]} x {tasks} workers, "
                             r"(io_uring|epoll)(?: \((.+)\))?\n", line)
        check(parts, f"the first line is {line!r}")
        self.port, self.backend, self.fell_back = int(parts[1]), parts[2], parts[3]
        check(self.port, f"no port: {line!r}")
        if backend:
            check((self.backend, self.fell_back) == (backend, None), f"forced {backend}: {line!r}")
        else:
            check(self.backend == "io_uring" or self.fell_back, f"fell back unexplained: {line!r}")

    def connect(self, buffers=None):
        client = socket.socket()
        self.clients.append(client)
        if buffers:  # before connecting, while the window can still be kept small
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", self.port))
        return client

    def refuses(self):
        with socket.socket() as probe:
            probe.settimeout(PATIENCE)
            # A backlog dying under the probe resets it; only a closed listener refuses.
            return probe.connect_ex(("127.0.0.1", self.port)) == errno.ECONNREFUSED

    def fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK  # utime + stime, of all threads

    def cpu_of_a_second(self):
        before = self.cpu()
        time.sleep(1)
        return self.cpu() - before

    def backlog(self):
        """Connections the kernel holds and nobody has accepted: the receive queue of a listener."""
        with open("/proc/net/tcp") as table:
            for _, local, _, state, queues, *_ in map(str.split, table):
                if state == "0A" and local.endswith(f":{self.port:04X}"):
                    return int(queues.split(":")[1], 16)
        raise Failed("nobody listens")

    def ends(self, within, status=0):
        try:
            ended = self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise Failed(f"still running after {within} s") from None
        check(status is None or ended == status, f"exit status {ended}, not {status}")
        eventually(self.is_gone, "leaves a process behind")
        check(self.refuses(), "the port still answers")

    def is_gone(self):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.process.pid, os.WNOHANG)[0]:  # orphans, that have become ours
                pass
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def has_children(self, count, seconds=PATIENCE):
        """Waits until there are so many, each of which says so; returns their pids."""
        def all_started():
            self.errors.seek(0)
            said = self.errors.read()
            pids = children(self.process.pid)
            return len(pids) == count and all(
                re.search(rf"\(pid {pid}\) started: {self.backend}\n", said) for pid in pids)
        eventually(all_started, f"not {count} processes that have said so", seconds)
        return children(self.process.pid)

    def destroy(self):
        """Whatever happened, nothing stays; returns what it had to say."""
        for client in self.clients:
            client.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        with self.errors:
            self.errors.seek(0)
            return self.errors.read().strip()[-2000:]

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        if failure is None:
            for client in self.clients:
                client.close()
            if self.process.returncode is None:  # else the test has seen its end
                check(self.process.poll() is None, f"died, exit status {self.process.returncode}")
                self.process.terminate()
                self.ends(within=5)  # less than its grace: no forgotten connection may take that


def outcome(process):
    """Waits for the end of a program; returns its exit status and what it wrote."""
    try:
        out, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise Failed(f"{process.args} runs on") from None
    finally:
        process.kill()
        process.communicate()
    return process.returncode, out, errors


def complaint(process):
    """Waits for the end of a program that must fail; returns its exit status and the one line."""
    status, out, line = outcome(process)
    one_line = line.endswith("\n") and line.count("\n") == 1 and not line.startswith("usage")
    check(one_line and not out, f"{process.args}: not one line with a cause: {out!r}, {line!r}")
    return status, line


def refusal(args, backend, before_exec=None, program="echo"):
    """Runs a program that must not start; returns its exit status and its one line of stderr."""
    return complaint(start(args, backend, before_exec, subprocess.PIPE, program))


def refuses_all(bad, backend, program="echo"):
    """Each of `bad`, arguments with a pattern that names the bad one, ends with exit status 2."""
    for args, names in bad:
        status, line = refusal(args, backend, program=program)
        check(status == 2, f"{program} {args}: exit status {status}, {line!r}")
        check(re.search(names, line, re.I), f"{program} {args}: does not say which: {line!r}")


def refuse_io_uring(error):
    """Makes io_uring_setup fail with `error` in this process from now on, as containers do."""
    def instruction(code, true, false, k):
        return struct.pack("=HBBI", code, true, false, k)
    program = ctypes.create_string_buffer(
        instruction(0x20, 0, 0, 0)                          # load the number of the call
        + instruction(0x15, 0, 1, SYS_IO_URING_SETUP)       # another one: skip the next
        + instruction(0x06, 0, 0, 0x00050000 | error)       # SECCOMP_RET_ERRNO
        + instruction(0x06, 0, 0, 0x7FFF0000))              # SECCOMP_RET_ALLOW
    header = ctypes.create_string_buffer(struct.pack("HP", 4, ctypes.addressof(program)))
    ok = LIBC.prctl(38, 1, 0, 0, 0) == 0                    # PR_SET_NO_NEW_PRIVS
    if not ok or LIBC.prctl(22, 2, header, 0, 0) != 0:      # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")


def become_ordinary():
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def setting(name):
    with open(f"/proc/sys/net/ipv4/{name}") as file:
        return int(file.read())


# --- the clients ------------------------------------------------------------------------------

def receive(client, count):
    """Exactly `count` bytes, or to the end of the stream with count=None."""
    got = bytearray()
    while count is None or len(got) < count:
        try:
            chunk = client.recv(65536 if count is None else count - len(got))
        except socket.timeout:
            raise Failed(f"hangs after {len(got)} of {count or 'all'} bytes") from None
        if not chunk:
            check(count is None, f"end of stream after {len(got)} of {count} bytes")
            break
        got += chunk
    return bytes(got)


def exchange(client, message=b"are you there?"):
    client.sendall(message)
    got = receive(client, len(message))
    check(got == message, f"sent {message[:40]!r}, got {got[:40]!r}")


def converse(messages, half_close=False):
    """All clients of {client: message} at once, until each has its whole echo. Reads while it
    writes: the server stops reading while its reply is stuck, so a client that first wrote
    everything would lock up with it."""
    left, sent, got = dict(messages), dict.fromkeys(messages, 0), dict.fromkeys(messages, 0)
    while left:
        writers = [client for client in left if sent[client] < len(left[client])]
        readable, writable, _ = select.select(list(left), writers, [], PATIENCE)
        check(readable or writable, f"{len(left)} clients hang, at {[got[c] for c in left]} bytes")
        for client in writable:
            part = memoryview(left[client])[sent[client]:]
            sent[client] += client.send(part[:65536])
            if half_close and sent[client] == len(left[client]):
                client.shutdown(socket.SHUT_WR)
        for client in readable:
            chunk = client.recv(65536)
            expected = left[client][got[client]:got[client] + len(chunk)]
            check(chunk, f"the end after {got[client]} of {len(left[client])} bytes")
            check(chunk == expected, f"wrong after {got[client]} of {len(left[client])} bytes")
            got[client] += len(chunk)
            if got[client] == len(left[client]):
                del left[client]


def stuff(clients, quiet=0.5):
    """Sends, never reading, until nothing has moved for a while: the server waits in its writes.
    Returns what went out, as {client: bytes}."""
    sent = dict.fromkeys(clients, 0)
    while writable := select.select([], clients, [], quiet)[1]:
        for client in writable:
            sent[client] += client.send(NOISE[sent[client]:sent[client] + 65536])
            check(sent[client] < len(NOISE), "takes without bound from a client that never reads")
    return {client: NOISE[:count] for client, count in sent.items()}


def served(waiting, seconds):
    """Takes from `waiting` (client: message) those whose echo comes first within `seconds`."""
    ready, _, _ = select.select(list(waiting), [], [], seconds)
    for client in ready:
        message = waiting.pop(client)
        check(receive(client, len(message)) == message, "wrong bytes")
    return ready


def callers(server, count):
    """Connects `count` clients; each has sent a message of its own and waits for the echo."""
    waiting = {server.connect(): b"I am client %d" % i for i in range(count)}
    for client, message in waiting.items():
        client.sendall(message)
    return waiting


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# --- echoing ----------------------------------------------------------------------------------

@test("fifty clients get random messages up to 1 MiB back intact")
def echoes_intact(server):
    rng = random.Random(2)
    clients = [server.connect() for _ in range(50)]
    for longest in (1, 16385, 100_000, 1 << 20, 1 << 20):
        converse({client: rng.randbytes(rng.randint(1, longest)) for client in clients})


@test("half-close returns every byte, then the end")
def half_close(server):
    for size in (1, 16383, 16384, 16385, 100_000, 5 << 20):
        client = server.connect()
        converse({client: NOISE[:size]}, half_close=True)
        check(receive(client, None) == b"", "bytes nobody sent")


@test("who reads late finds every byte")
def late_readers(server):
    # A send into a buffer almost full is short: the place to lose bytes.
    for client, message in stuff([server.connect(16384 << i) for i in range(5)]).items():
        client.shutdown(socket.SHUT_WR)
        check(receive(client, None) == message, f"not the {len(message)} bytes sent")


@test("data together with FIN is answered in full, 400 times")
def data_with_fin(server):
    rng = random.Random(3)
    for i in range(400):
        client = server.connect()
        if i % 2:
            exchange(client)       # accepted, so that data and FIN come to a waiting read,
            if i % 4 == 3:         # surely so after a moment; the other half of the
                time.sleep(0.002)  # connections may still be in the backlog
        # A corked socket keeps its last segment back, and FIN joins it.
        option = (socket.TCP_CORK, socket.TCP_CORK, socket.TCP_NODELAY)[i % 3]
        client.setsockopt(socket.IPPROTO_TCP, option, 1)
        message = rng.randbytes(rng.choice((1, 5, 16383, 16384, 16385, 32768, 40000)))
        client.sendall(message)
        if i % 10 == 9:
            client.close()  # no reply to see, only that the others do not suffer
            continue
        client.shutdown(socket.SHUT_WR)
        got = receive(client, None)
        check(got == message, f"round {i}: {len(got)} of {len(message)} bytes, then the end")
        client.close()


@test("urgent data: the other bytes come back")
def urgent_data(server):
    for _ in range(20):
        client = server.connect()
        client.sendall(b"before ")
        client.send(b"ab", socket.MSG_OOB)  # the last byte travels out of band: not echoed
        client.sendall(b" after")
        got = receive(client, 14)
        check(got == b"before a after", f"got {got!r}")
        client.send(b"!", socket.MSG_OOB)   # wakes a reader that then has nothing to read
        time.sleep(0.002)
        exchange(client)
        client.shutdown(socket.SHUT_WR)
        check(receive(client, None) == b"", "bytes nobody sent")
    for client in [server.connect() for _ in range(5)]:
        client.send(b"!", socket.MSG_OOB)       # and stays
    spent = server.cpu_of_a_second()
    check(spent <= 0.1, f"{spent:.2f} s of processor time in 1 s, urgent bytes unread")


# --- clients that misbehave -------------------------------------------------------------------

@test("300 resets at every moment leave no descriptor behind")
def resets(server):
    steady = server.connect()  # with one connection open, whatever is made lazily is made
    exchange(steady)
    before = server.fds()
    for i in range(300):
        moment = i % 6
        client = server.connect(8192 if moment == 5 else None)
        if moment == 1:    # the server waits in a read
            exchange(client)
        elif moment >= 2:  # at 2: data in flight
            client.sendall(bytes(20_000) if moment == 3 else b"x" * i)
        if moment == 3:    # a reply unread, perhaps half sent
            select.select([client], [], [], PATIENCE)
        elif moment == 4:  # after FIN
            client.shutdown(socket.SHUT_WR)
        elif moment == 5:  # the server waits in a write
            stuff([client], quiet=0.03)
        reset(client)
    many = [server.connect() for _ in range(50)]
    for client in many:
        reset(client)      # accepted or not: all at once
    exchange(steady)
    exchange(newcomer := server.connect())
    newcomer.close()
    eventually(lambda: server.fds() == before, "more or fewer descriptors than before")


@test("twenty clients that never read slow nobody")
def never_readers(server):
    stuff([server.connect(16384) for _ in range(20)])
    spent = server.cpu_of_a_second()
    check(spent <= 0.1, f"{spent:.2f} s of processor time in 1 s, waiting to write")
    others = [server.connect() for _ in range(10)]
    for size in (10, 100_000, 1 << 20):
        converse({client: NOISE[i:i + size] for i, client in enumerate(others)})


# --- limits -----------------------------------------------------------------------------------

@test("4 workers serve 4 of 10 clients, then the others in turn", tasks=4)
def workers_full(server):
    waiting, live = callers(server, 10), []

    def serves(count, quiet):
        while len(live) < count:
            ready = served(waiting, PATIENCE)
            check(ready, f"{len(live)} clients served, not {count}")
            live.extend(ready)
        # That nobody else is served can only be seen by waiting.
        live.extend(served(waiting, quiet))
        check(len(live) == count, f"{len(live)} clients served at once by 4 workers")

    serves(4, quiet=0.5)
    eventually(lambda: server.backlog() == 6, "the others do not wait in the backlog")
    while waiting:
        live.pop(0).close()
        serves(4, quiet=0.1)
    for client in live:
        exchange(client)


@test("out of descriptors: waits without spinning, then serves all 120 clients",
      before_exec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
def out_of_descriptors(server):
    waiting, live = callers(server, 120), []
    while ready := served(waiting, PATIENCE if not live else 1):
        live.extend(ready)
    check(0 < len(live) < 40, f"{len(live)} clients served with 40 descriptors")
    spent = server.cpu_of_a_second()
    check(spent <= 0.1, f"{spent:.2f} s of processor time in 1 s, starved")
    while waiting:
        for client in live:
            client.close()
        live = served(waiting, PATIENCE)
        check(live, f"{len(waiting)} clients are never served")


@test("fifty idle connections use no processor time")
def idle(server):
    for client in [server.connect() for _ in range(50)]:
        exchange(client)
    time.sleep(0.2)  # the last one's work is still being put away
    spent = server.cpu_of_a_second()
    check(spent <= 2 * TICK, f"{spent:.2f} s of processor time in 1 s")


# --- which backend ----------------------------------------------------------------------------

for error in (errno.EPERM, errno.ENOSYS):
    def refuse(error=error):
        refuse_io_uring(error)

    @test(f"io_uring refused with {errno.errorcode[error]}: runs on epoll and says why", AUTO,
          before_exec=refuse)
    def falls_back(server, error=error):
        check(server.backend == "epoll", "claims io_uring under a filter that refuses it")
        check("io_uring" in server.fell_back and os.strerror(error) in server.fell_back,
              f"gives as reason {server.fell_back!r}")
        exchange(server.connect())

    @test_of_start(f"forced and refused with {errno.errorcode[error]}: an error", ("io_uring",))
    def forced_and_refused(backend, error=error, refuse=refuse):
        status, line = refusal(["127.0.0.1", "0"], backend, refuse)
        check(status in (1, 2), f"exit status {status}")
        check("io_uring" in line and os.strerror(error) in line, f"says {line!r}")

    @test(f"forced runs while io_uring is refused with {errno.errorcode[error]}", ("epoll",),
          before_exec=refuse)
    def epoll_alone(server):
        exchange(server.connect())


@test_of_start("an unknown backend is an error", AUTO)
def unknown_backend(_):
    status, line = refusal(["127.0.0.1", "0"], "kqueue")
    check(status in (1, 2) and "kqueue" in line, f"exit status {status}, {line!r}")


def no_locked_memory():
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    become_ordinary()  # root is not bound by the limit


@test("an ordinary user without locked memory is served", AUTO, before_exec=no_locked_memory)
def served_without_locked_memory(server):  # Server has asked why, if it fell back
    exchange(server.connect())


# --- arguments and addresses ------------------------------------------------------------------

@test_of_start("bad arguments are refused in one line")
def bad_arguments(backend):
    good, ip, port, task, process = ["127.0.0.1", "0"], r"\bip\b|address", "port", "task", "process"
    bad = [([text], ip) for text in ("nonsense", "256.0.0.1", "127.0.0.1x", "")]
    bad += [(["127.0.0.1", text], port) for text in ("70000", "65536", "x", "-1", "80x", "")]
    bad += [(good + [text], task) for text in ("0", "-1", "abc", "4x", "", "99999999999999999999")]
    bad += [(good + ["4", text], process) for text in ("0", "-1", "two", "2x", "")]
    bad += [(good + ["4", "1", "5"], "too many|argument")]
    bad += [(["-d", "nonsense"], ip), (["-d", *good, "0"], task)]
    bad += [(["-d", *good, "4", "0"], process), (["-d", *good, "4", "1", "5"], "too many|argument")]
    bad += [(["-x"], ip), ([*good, "-d"], task)]
    refuses_all(bad, backend)


def cannot_listen(backend, address, error, before_exec=None):
    status, line = refusal(list(map(str, address)), backend, before_exec)
    check(status == 1, f"exit status {status}, {line!r}")
    check("%s:%d" % address in line and os.strerror(error) in line, f"says {line!r}")


@test_of_start("a port in use is an error that names it")
def port_in_use(backend):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cannot_listen(backend, taken.getsockname(), errno.EADDRINUSE)


@test_of_start("an address of another machine is an error that names it")
def foreign_address(backend):
    if setting("ip_nonlocal_bind"):
        raise Skip("any address may be bound here")
    cannot_listen(backend, ("192.0.2.1", 9000), errno.EADDRNOTAVAIL)


@test_of_start("a port that is not permitted is an error that names it")
def port_not_permitted(backend):
    if setting("ip_unprivileged_port_start") <= 1:
        raise Skip("every port is permitted here")
    cannot_listen(backend, ("127.0.0.1", 1), errno.EACCES, become_ordinary)


# --- the end ----------------------------------------------------------------------------------

for signum in SIGNALS:
    @test(f"{signum.name} lets five connections finish")
    def finishes(server, signum=signum):
        clients = [server.connect() for _ in range(5)]
        for client in clients:
            exchange(client)
        server.process.send_signal(signum)
        eventually(server.refuses, "still accepts", seconds=5)
        while clients:
            for client in clients:
                exchange(client)
            check(server.process.poll() is None, f"ended with {len(clients)} clients connected")
            clients.pop().close()
        server.ends(within=1.5)

    @test(f"{signum.name} before any connection ends at once")
    def nobody_came(server, signum=signum):
        server.process.send_signal(signum)
        server.ends(within=1.5)

    @test(f"{signum.name} after the last connection ends at once")
    def nobody_left(server, signum=signum):
        client = server.connect()
        exchange(client)
        client.close()
        server.process.send_signal(signum)
        server.ends(within=1.5)


for first, second in itertools.product(SIGNALS, SIGNALS):
    @test(f"{first.name}, then {second.name}, ends at once")
    def second_signal(server, first=first, second=second):
        client = server.connect()
        exchange(client)
        server.process.send_signal(first)
        eventually(server.refuses, "still accepts", seconds=5)
        exchange(client)
        server.process.send_signal(second)
        server.ends(within=2, status=None)
        with contextlib.suppress(ConnectionError):
            check(receive(client, None) == b"", "bytes nobody sent")


@test("SIGTERM waits 10 s for clients that stay, no longer")
def clients_that_stay(server):
    exchange(server.connect())
    stuff([server.connect(16384)])  # one waits in a read, one in a write
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.ends(within=10 + PATIENCE)
    took = time.monotonic() - begin
    check(took > 9, f"ended after {took:.1f} s")


# --- several processes ------------------------------------------------------------------------

@test("two processes: fifty clients get random messages back intact", processes=2)
def two_processes(server):
    server.has_children(2)
    rng = random.Random(4)
    clients = [server.connect() for _ in range(50)]
    for longest in (1, 16385, 100_000):
        converse({client: rng.randbytes(rng.randint(1, longest)) for client in clients})


def ten_live(server):
    """Ten clients of both processes: one alone has 8 workers."""
    clients = [server.connect() for _ in range(10)]
    for client in clients:
        exchange(client)
    return clients


def finish(server, clients):
    """After a signal: no new ones, these are served on, and with the last the server ends."""
    eventually(server.refuses, "still accepts", seconds=5)
    time.sleep(0.2)  # whatever else the signal does, it has done
    while clients:
        for client in clients:
            exchange(client)
        check(server.process.poll() is None, f"ended with {len(clients)} clients connected")
        clients.pop().close()
    server.ends(within=1)


for signum in SIGNALS:
    @test(f"two processes: {signum.name} lets ten connections finish", tasks=8, processes=2)
    def processes_finish(server, signum=signum):
        clients = ten_live(server)
        server.process.send_signal(signum)
        finish(server, clients)

    @test(f"two processes: {signum.name} to the whole group counts once", tasks=8, processes=2)
    def group_signal(server, signum=signum):  # SIGINT is Ctrl-C, SIGTERM a service manager
        clients = ten_live(server)
        os.killpg(server.process.pid, signum)
        finish(server, clients)

    @test(f"two processes: {signum.name} without connections ends at once", processes=2)
    def processes_idle(server, signum=signum):
        server.process.send_signal(signum)  # perhaps before there are any children
        server.ends(within=1)


@test("two processes: a second signal ends all at once", tasks=8, processes=2)
def processes_second_signal(server):
    clients = ten_live(server)
    server.process.terminate()
    eventually(server.refuses, "still accepts", seconds=5)
    exchange(clients[0])
    server.process.send_signal(signal.SIGINT)
    server.ends(within=1, status=1)


@test("two processes: when the parent is killed, they finish and end", tasks=8, processes=2)
def parent_killed(server):
    server.has_children(2)
    clients = ten_live(server)
    server.process.kill()
    server.process.wait()
    eventually(server.refuses, "still accepts", seconds=5)
    while clients:
        exchange(clients[-1])
        clients.pop().close()
    eventually(server.is_gone, "children outlive their parent", seconds=2)


@test("two processes: one that is killed is back within 2 s", tasks=3, processes=2)
def child_killed(server):
    before = server.has_children(2)
    for victim in before:
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: victim not in children(server.process.pid), "survives SIGKILL")
        after = server.has_children(2, seconds=2)
        check(len(set(after) & set(before)) <= 1, f"the processes are {after}, were {before}")
        waiting = callers(server, 6)  # that takes both
        while waiting:
            check(served(waiting, PATIENCE), f"{len(waiting)} clients are not served")
        while server.clients:
            server.clients.pop().close()


for processes in (1, 2):
    @test_of_start(f"-d with {processes} of them: returns at once, the server runs on")
    def detaches(backend, processes=processes):
        command = start(["-d", "127.0.0.1", "0", "8", str(processes)], backend)
        status, line, _ = outcome(command)
        listens = re.match(rf"echo: listening on 127\.0\.0\.1:(\d+), {processes} process", line)
        check(status == 0 and listens, f"exit status {status}, {line!r}")
        (server,) = children(os.getpid())  # its parent has ended
        check(os.getsid(server) not in (command.pid, os.getsid(0)), "still in a session of others")
        with socket.create_connection(("127.0.0.1", int(listens[1])), PATIENCE) as client:
            exchange(client)
            os.kill(server, signal.SIGTERM)
            exchange(client)
        eventually(lambda: os.waitpid(server, os.WNOHANG) == (server, 0), "does not end well")


# --- echo_client ------------------------------------------------------------------------------

def echo_client(port, backend, *options, connections=10, stderr=subprocess.PIPE):
    return start(["127.0.0.1", str(port), str(connections), *map(str, options)], backend,
                 stderr=stderr, program="echo_client")


def figures(client, size=64):
    """Waits for the end of an echo_client that must succeed; returns its messages/s."""
    status, out, errors = outcome(client)
    check(status == 0 and not errors, f"exit status {status}, {out!r}, {errors!r}")
    parts = re.fullmatch(r"(\d+) messages/s, (\d+) bytes/s, us: p50 ([\d.]+), p99 ([\d.]+), "
                         r"p99\.9 ([\d.]+), max ([\d.]+)\n", out)
    check(parts, f"says {out!r}")
    rate, bytes_rate, *latencies = map(float, parts.groups())
    check(rate > 0 and abs(bytes_rate - rate * size) <= size, f"does not add up: {out!r}")
    check(0 < latencies[0] and latencies == sorted(latencies), f"not in order: {out!r}")
    return rate


@test("echo_client: every byte is right, and figures", processes=2)
def client_measures(server):
    for connections, size, depth in ((10, 64, 1), (50, 1001, 16), (1, 1, 1000), (5, 300_000, 20)):
        figures(echo_client(server.port, server.backend, "--size", size, "--depth", depth,
                            "--seconds", 1, connections=connections), size)


@test("echo_client: SIGINT ends it early, with the figures")
def client_interrupted(server):
    before = server.fds()
    client = echo_client(server.port, server.backend, "--seconds", 1000)
    eventually(lambda: server.fds() >= before + 10, "does not connect")
    time.sleep(0.2)
    client.send_signal(signal.SIGINT)
    figures(client)


@test("echo_client: progress once a second, on a terminal")
def client_progress(server):
    ours, terminal = pty.openpty()
    client = echo_client(server.port, server.backend, "--seconds", 2, stderr=terminal)
    os.close(terminal)
    status, out, _ = outcome(client)
    said = ""
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
        while chunk := os.read(ours, 4096):
            said += chunk.decode()
    os.close(ours)
    check(status == 0 and "p99.9" in out, f"exit status {status}, {out!r}")
    check(re.fullmatch(r"1 s: \d+ messages/s\r\n2 s: \d+ messages/s\r\n", said), f"says {said!r}")


def against(backend, serve, *options):
    """An echo_client of one connection, which this function serves; its exit status and line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        client = echo_client(listener.getsockname()[1], backend, *options, connections=1)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            serve(connection)
        return complaint(client)


def echo_some(connection, count):
    while count > 0 and (chunk := connection.recv(min(count, 65536))):
        connection.sendall(chunk)
        count -= len(chunk)


@test_of_start("echo_client: a byte that differs is found")
def client_finds_corruption(backend):
    for before, size in ((0, 64), (63, 64), (64 * 100 + 5, 64), (999_999, 100_000)):
        def corrupt(connection, before=before):
            echo_some(connection, before)
            connection.sendall(bytes([connection.recv(1)[0] ^ 1]))
            with contextlib.suppress(ConnectionError):
                echo_some(connection, 10 * size)
        status, line = against(backend, corrupt, "--size", size, "--depth", 3)
        check(status == 1 and "differs" in line, f"exit status {status}, {line!r}")
        check(f"reply {before // size} " in line, f"not the right reply: {line!r}")


@test_of_start("echo_client: a connection that ends, or is reset, is an error")
def client_sees_the_end(backend):
    for how in (socket.socket.close, reset):
        def leave(connection, how=how):
            echo_some(connection, 64 * 10 + 7)
            how(connection)
        status, line = against(backend, leave)
        check(status == 1 and "connection 1 broke" in line, f"exit status {status}, {line!r}")


@test_of_start("echo_client: a server that falls silent is an error after 5 s")
def client_sees_silence(backend):
    def fall_silent(connection):
        echo_some(connection, 64 * 10)
        while connection.recv(65536):
            pass
    begin = time.monotonic()
    status, line = against(backend, fall_silent, "--seconds", 1)
    took = time.monotonic() - begin
    check(status == 1 and "missing" in line, f"exit status {status}, {line!r}")
    check(5.9 < took < 10, f"took {took:.1f} s")


@test_of_start("echo_client: a refused connection is an error")
def client_refused(backend):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        status, line = complaint(echo_client(taken.getsockname()[1], backend))
        address = "%s:%d" % taken.getsockname()
        check(status == 1 and address in line and os.strerror(errno.ECONNREFUSED) in line,
              f"exit status {status}, {line!r}")


@test_of_start("echo_client: bad arguments are refused in one line")
def client_bad_arguments(backend):
    good = ["127.0.0.1", "9000", "1"]
    bad = [([text], "ip") for text in ("nonsense", "256.0.0.1", "", "-x")]
    bad += [(good[:1] + [text], "port") for text in ("0", "65536", "x", "-1", "80x", "")]
    bad += [(good[:2] + [text], "connections") for text in ("0", "-1", "abc", "1e3", "")]
    bad += [(good + ["5"], "too many")]
    for option in ("--size", "--depth", "--seconds"):
        bad += [([option, text], option) for text in ("0", "-1", "x", "", "9" * 20)]
        bad += [([option], option), (good + [option], option)]
    bad += [(["--sizes", "1"], "--sizes"), (["--"], "--")]
    refuses_all(bad, backend, "echo_client")


# --- poll and threads -------------------------------------------------------------------------

@test_of_start("poll: connected, refused and timed out, each in a line")
def polls(backend):
    with contextlib.ExitStack() as sockets:
        ready = sockets.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()
        refusing = sockets.enter_context(socket.socket())
        refusing.bind(("127.0.0.1", 0))
        refusing = refusing.getsockname()
        full = socket.create_server(("127.0.0.1", 0), backlog=0)
        full = sockets.enter_context(full).getsockname()
        for _ in range(2):  # its backlog; who comes later is left without an answer
            caller = sockets.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(full)
        expected = {"%s:%d connected" % ready, "%s:%d timed out" % full,
                    "%s:%d error: %s" % (*refusing, os.strerror(errno.ECONNREFUSED))}
        addresses = ["%s:%d" % each for each in (full, refusing, ready)]
        begin = time.monotonic()
        status, out, errors = outcome(start(addresses, backend, None, subprocess.PIPE, "poll"))
        took = time.monotonic() - begin
        check(status == 1 and set(out.splitlines()) == expected, f"{status}, {out!r}, {errors!r}")
        check(out.endswith(" timed out\n") and 1.9 < took < 5, f"in {took:.1f} s: {out!r}")
        both = outcome(start(addresses[2:] * 2, backend, None, subprocess.PIPE, "poll"))
        check(both == (0, ("%s:%d connected\n" % ready) * 2, ""), f"{both}")
    refuses_all([([], "address"), ([addresses[0], "127.0.0.1"], r"127\.0\.0\.1\b.*port"),
                 (["localhost:80"], "localhost")], backend, "poll")


@test("threads: two of them echo, and finish after SIGTERM", tasks=8, processes=2,
      program="threads")
def threads(server):
    rng = random.Random(5)
    clients = ten_live(server)
    check(len(os.listdir(f"/proc/{server.process.pid}/task")) >= 3, "not two threads of its own")
    for longest in (1, 16385, 100_000):
        converse({client: rng.randbytes(rng.randint(1, longest)) for client in clients})
    server.process.terminate()
    time.sleep(0.2)
    late = server.connect()  # the backlog takes it, and nobody else
    late.sendall(b"anybody there?")
    while clients:
        for client in clients:
            exchange(client)
        check(server.process.poll() is None, f"ended with {len(clients)} clients connected")
        # Asked while the server lives: what it leaves in its backlog is reset when it ends.
        check(not select.select([late], [], [], 0)[0], "served after SIGTERM")
        clients.pop().close()
    server.ends(within=1)


@test_of_start("threads: bad arguments are refused in one line")
def threads_bad_arguments(backend):
    good = ["127.0.0.1", "0", "1", "1"]
    bad = [(["nonsense"], "ip"), (good[:1] + ["x"], "port"), (good + ["1"], "too many")]
    bad += [(good[:2] + [text], "threads") for text in ("0", "-1", "x", "")]
    bad += [(good[:3] + [text], "workers") for text in ("0", "-1", "x", "")]
    refuses_all(bad, backend, "threads")


# --- running them -----------------------------------------------------------------------------

def why_no_io_uring():
    """None, or why this kernel refuses io_uring to anybody here."""
    LIBC.syscall(SYS_IO_URING_SETUP, 0, None)  # invalid, so that no ring is made
    error = ctypes.get_errno()
    return os.strerror(error) if error in (errno.EPERM, errno.ENOSYS) else None


def on_alarm(*_):
    raise Failed(f"not done after {DEADLINE} s")


def on_sigterm(*_):
    """As Ctrl-C, which becomes this under `meson test`: what a test has started ends with it."""
    sys.exit("ended by SIGTERM")


def run(body, backend):
    signal.alarm(DEADLINE)
    result, why = "ok", ""
    try:
        body(backend)
    except Skip as reason:
        result, why = "skipped", f": {reason}"
    except Exception as failure:
        result, why = "FAILED", f": {failure if isinstance(failure, Failed) else repr(failure)}"
    finally:
        signal.alarm(0)
        while Server.running:
            said = Server.running.pop().destroy()
            why += f"; its stderr: {said}" if said and result == "FAILED" else ""
        end_orphans()
    return result, why


def main(names=("echo", "echo_client", "poll", "threads")):
    global programs
    if len(sys.argv) < 2 or not os.access(sys.argv[1], os.X_OK):
        sys.exit(__doc__)
    filters = sys.argv[2:] or [""]
    no_io_uring = why_no_io_uring()
    signal.signal(signal.SIGALRM, on_alarm)
    signal.signal(signal.SIGTERM, on_sigterm)
    counts = dict.fromkeys(("ok", "skipped", "FAILED"), 0)
    LIBC.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    with tempfile.TemporaryDirectory() as programs:
        # Copies, where an ordinary user can reach them and no build replaces them meanwhile.
        os.chmod(programs, 0o755)
        for name in names:
            built = os.path.join(os.path.dirname(sys.argv[1]), name)
            if os.path.exists(built):  # else the tests of it fail
                os.chmod(shutil.copy(built, programs), 0o755)
        for title, backend, body in tests:
            if not any(part in title for part in filters):
                continue
            if backend == "io_uring" and no_io_uring:
                result, why = "skipped", f": the kernel refuses io_uring: {no_io_uring}"
            else:
                result, why = run(body, backend)
            counts[result] += 1
            print(f"{result} {title}{why}", flush=True)
    print(f"{counts['ok']} passed, {counts['FAILED']} failed")
    return 1 if counts["FAILED"] or not counts["ok"] else 0


if __name__ == "__main__":
    sys.exit(main())
