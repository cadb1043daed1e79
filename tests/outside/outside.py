#!/usr/bin/env python3
"""Tests of the echo example from outside: a real process, real sockets, each backend.

    outside.py PATH_TO_ECHO [name-filter...]

A filter is part of "backend name", as printed. Nothing but the standard library (3.9 or later).
Time is shared with whatever else the machine does, so "eventually" is generous; only processor
time, which others cannot spend for the server, is held to tight bounds.
"""
import contextlib
import ctypes
import errno
import itertools
import os
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
echo_path = None


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

def start(args, backend, before_exec, stderr):
    environment = {k: v for k, v in os.environ.items() if k != "COAX_BACKEND"}
    if backend is not None:
        environment["COAX_BACKEND"] = backend

    def in_child():
        # A background job of a shell that has no job control inherits SIGINT ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if before_exec:
            before_exec()
    return subprocess.Popen([echo_path, *args], env=environment, preexec_fn=in_child, text=True,
                            start_new_session=True, stdout=subprocess.PIPE, stderr=stderr)


class Server:
    """A running echo on a free port. Leaving the block ends it and checks that it went well."""

    running = []

    def __init__(self, backend, tasks=1024, before_exec=None):
        self.clients = []
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        args = ["127.0.0.1", "0"] + ([str(tasks)] if tasks != 1024 else [])
        self.process = start(args, backend, before_exec, self.errors)
        Server.running.append(self)
        line = self.process.stdout.readline()
        parts = re.fullmatch(r"echo: listening on 127\.0\.0\.1:(\d+), 1 process x (\d+) workers, "
                             r"(io_uring|epoll)(?: \((.+)\))?\n", line)
        check(parts, f"the first line is {line!r}")
        self.port, self.backend, self.fell_back = int(parts[1]), parts[3], parts[4]
        check(self.port and int(parts[2]) == tasks, f"not what was asked: {line!r}")
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
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False

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


def refusal(args, backend, before_exec=None):
    """Runs an echo that must not start; returns its exit status and its one line of stderr."""
    process = start(args, backend, before_exec, subprocess.PIPE)
    try:
        out, line = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise Failed(f"echo {args} runs") from None
    finally:
        process.kill()
        process.communicate()
    one_line = line.endswith("\n") and line.count("\n") == 1 and not line.startswith("usage")
    check(one_line and not out, f"echo {args}: not one line with a cause: {out!r}, {line!r}")
    return process.returncode, line


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
    bad += [(good + ["4", text], process) for text in ("0", "-1", "two", "2", "1000", "")]
    bad += [(good + ["4", "1", "5"], "too many|argument")]
    for args, names in bad:
        status, line = refusal(args, backend)
        check(status == 2, f"echo {args}: exit status {status}, {line!r}")
        check(re.search(names, line, re.I), f"echo {args}: does not say which: {line!r}")


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


# --- running them -----------------------------------------------------------------------------

def why_no_io_uring():
    """None, or why this kernel refuses io_uring to anybody here."""
    LIBC.syscall(SYS_IO_URING_SETUP, 0, None)  # invalid, so that no ring is made
    error = ctypes.get_errno()
    return os.strerror(error) if error in (errno.EPERM, errno.ENOSYS) else None


def on_alarm(*_):
    raise Failed(f"not done after {DEADLINE} s")


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
    return result, why


def main():
    global echo_path
    if len(sys.argv) < 2 or not os.access(sys.argv[1], os.X_OK):
        sys.exit(__doc__)
    filters = sys.argv[2:] or [""]
    no_io_uring = why_no_io_uring()
    signal.signal(signal.SIGALRM, on_alarm)
    counts = dict.fromkeys(("ok", "skipped", "FAILED"), 0)
    with tempfile.TemporaryDirectory() as directory:
        # A copy, where an ordinary user can reach it and no build replaces it meanwhile.
        os.chmod(directory, 0o755)
        echo_path = shutil.copy(sys.argv[1], directory)
        os.chmod(echo_path, 0o755)
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
