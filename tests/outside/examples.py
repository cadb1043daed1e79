#!/usr/bin/env python3
"""Tests of the smaller examples from outside: chat, condition, proxy, task_local.

    examples.py PATH_TO_ECHO [name-filter...]

As outside.py, next to it, whose tools it uses. They are looked for in the directory of echo.
"""
import contextlib
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time

import outside
from outside import (BOTH, NOISE, PATIENCE, SIGNALS, Failed, Server, check, converse, eventually,
                     outcome, receive, refusal, reset, said_by_many, start, stuff, test_of_start)

outside.tests.clear()  # it runs its own


class Listening(Server):
    """An example that says where it listens; as a Server otherwise."""

    def __init__(self, backend, program, *args):
        self.clients = []
        self.errors = said_by_many()
        self.process = start(["127.0.0.1:0", *map(str, args)], backend, None, self.errors, program)
        Server.running.append(self)
        line = self.process.stdout.readline()
        parts = re.fullmatch(rf"{program}: listening on 127\.0\.0\.1:(\d+)\n", line)
        check(parts, f"the first line is {line!r}")
        self.port, self.backend = int(parts[1]), backend

    def said(self):
        self.errors.seek(0)
        return self.errors.read()

    def memory(self):
        """Bytes in use, without what the kernel holds in sockets. AddressSanitizer keeps what was
        freed: with it, 0."""
        with open(f"/proc/{self.process.pid}/maps") as file:
            if "libasan" in file.read():
                return 0
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- chat -------------------------------------------------------------------------------------

class Member:
    """Somebody in a chat room, who has been told that he is in."""

    def __init__(self, room, buffers=None):
        self.socket = room.connect(buffers)
        self.pending = b""
        parts = re.fullmatch(r"\* (\d+) is here\n", self.line())
        check(parts, "is not greeted")
        self.number = int(parts[1])

    def line(self):
        """The next line, or "" at the end."""
        while b"\n" not in self.pending:
            try:
                chunk = self.socket.recv(65536)
            except socket.timeout:
                raise Failed(f"hears nothing, after {self.pending!r}") from None
            if not chunk:
                check(not self.pending, f"the end in the middle of a line: {self.pending!r}")
                return ""
            self.pending += chunk
        line, _, self.pending = self.pending.partition(b"\n")
        return line.decode() + "\n"

    def hears(self, line):
        got = self.line()
        check(got == line, f"{self.number} hears {got!r}, not {line!r}")

    def says(self, text):
        self.socket.sendall(text.encode() + b"\n")

    def leaves(self):
        self.socket.close()


def chat(name):
    def add(body):
        def with_room(backend):
            with Listening(backend, "chat") as room:
                body(room)
        test_of_start("chat: " + name, BOTH)(with_room)
        return body
    return add


def company(room, count):
    """So many members, each of whom has seen all others come."""
    members = []
    for _ in range(count):
        newcomer = Member(room)
        for member in members:
            member.hears(f"* {newcomer.number} is here\n")
        members.append(newcomer)
    return members


def talk_of_all(members, what):
    """All say the lines of {member: lines} at once, and hear until they have heard everything.
    Returns the lines each has heard."""
    unsent = {m: "".join(line + "\n" for line in lines).encode() for m, lines in what.items()}
    heard = {m: [] for m in members}
    for m in members:
        check(not m.pending, f"{m.number} has heard {m.pending!r}")
    expected = sum(map(len, what.values()))
    by_socket = {m.socket: m for m in members}
    while any(len(lines) < expected for lines in heard.values()):
        talking = [m.socket for m in what if unsent[m]]
        readable, writable, _ = select.select(list(by_socket), talking, [], PATIENCE)
        check(readable or writable, f"silence, after {sorted(map(len, heard.values()))} lines")
        for each in writable:
            sent = each.send(unsent[by_socket[each]][:65536])
            unsent[by_socket[each]] = unsent[by_socket[each]][sent:]
        for each in readable:
            m = by_socket[each]
            chunk = each.recv(65536)
            check(chunk, f"{m.number} is put out after {len(heard[m])} lines")
            *lines, m.pending = (m.pending + chunk).split(b"\n")
            heard[m] += [line.decode() for line in lines]
    return heard


@chat("all hear all lines of each, in order")
def chat_order(room):
    members = company(room, 6)
    what = {m: [f"line {i} of {m.number}" for i in range(300)] for m in members[:5]}
    heard = talk_of_all(members, what)
    for listener in members:
        for talker in members[:5]:
            of_him = [line for line in heard[listener] if line.startswith(f"{talker.number}: ")]
            said = [f"{talker.number}: {text}" for text in what[talker]]
            check(of_him == said, f"{listener.number} hears not what {talker.number} said")


@chat("a burst of 20,000 lines drops nobody who reads, whatever the pieces it comes in")
def chat_burst(room):
    members = company(room, 3)
    talker = members[0]
    lines = [str(i) for i in range(20_000)]
    heard = talk_of_all(members, {talker: lines})
    for listener in members:
        check(heard[listener] == [f"{talker.number}: {line}" for line in lines],
              f"{listener.number} hears something else")
    for byte in "in pieces\n".encode():
        talker.socket.sendall(bytes([byte]))
        time.sleep(0.001)  # so that they are not put together again
    for listener in members:
        listener.hears(f"{talker.number}: in pieces\n")


@chat("who does not read is dropped, and costs no memory")
def chat_slow_reader(room):
    talker, other = company(room, 2)
    slow = Member(room, 4096)
    dropped = f"* {slow.number} does not keep up\n"
    for member in (talker, other):
        member.hears(f"* {slow.number} is here\n")
    before, said, told = room.memory(), 0, set()
    while len(told) < 2:
        said += 1
        check(said < 50_000, "he is never dropped")  # the buffers of the kernel, and 64 lines
        text = f"{said} " + "x" * 900
        talker.says(text)
        for member in (talker, other):
            while (line := member.line()) != f"{talker.number}: {text}\n":
                check(line == dropped and member not in told, f"{member.number} hears {line!r}")
                told.add(member)
    check(room.memory() - before < 4 << 20, f"{room.memory() - before} bytes kept for him")
    with contextlib.suppress(ConnectionError):
        while slow.socket.recv(65536):
            pass


@chat("who writes and does not read is dropped")
def chat_writes_only(room):
    (listener,) = company(room, 1)
    flooder = Member(room, 4096)
    listener.hears(f"* {flooder.number} is here\n")
    line, sent, heard = b"y" * 99 + b"\n", 0, bytearray()
    while not heard.endswith(f"* {flooder.number} does not keep up\n".encode()):
        check(sent < 256 << 20, "takes without bound from somebody who does not read")
        readable, writable, _ = select.select([listener.socket], [flooder.socket], [], PATIENCE)
        check(readable or writable, "he is never dropped")
        with contextlib.suppress(ConnectionError):
            if writable:
                sent += flooder.socket.send((line * 1000)[sent % 100:])
        if readable:
            heard += listener.socket.recv(65536)
    whole = heard.count(f"{flooder.number}: ".encode() + line)
    check(whole == heard.count(b"\n") - 1, "lines are torn")
    listener.says("enough")
    listener.hears(f"{listener.number}: enough\n")


@chat("a line that does not end is not kept")
def chat_endless_line(room):
    (listener,) = company(room, 1)
    for size in (2049, 100_000):
        endless = Member(room)
        listener.hears(f"* {endless.number} is here\n")
        with contextlib.suppress(ConnectionError):
            endless.socket.sendall(b"z" * size)
        listener.hears(f"* {endless.number} has left\n")


@chat("300 come and go, in good order or by a reset, and leave nothing behind")
def chat_come_and_go(room):
    (listener,) = company(room, 1)
    before = room.fds()
    for i in range(300):
        guest = Member(room)
        listener.hears(f"* {guest.number} is here\n")
        if i % 3 == 0:
            reset(guest.socket)
        elif i % 3 == 1:
            guest.says("bye")
            listener.hears(f"{guest.number}: bye\n")
            guest.leaves()
        else:
            guest.socket.shutdown(socket.SHUT_WR)
        listener.hears(f"* {guest.number} has left\n")
    eventually(lambda: room.fds() == before, "more or fewer descriptors than before")


for signum in SIGNALS:
    @chat(f"{signum.name} closes the room, and all are told")
    def chat_closes(room, signum=signum):
        members = company(room, 5)
        room.process.send_signal(signum)
        for member in members:
            member.hears("* the room closes\n")
            check(member.line() == "", "hears more")
            member.leaves()
        room.ends(within=2)


@test_of_start("chat: where it cannot listen, it says why in one line")
def chat_cannot_listen(backend):
    for where, why in (("nonsense", "not an address"), ("127.0.0.1:x", "port"),
                       ("192.0.2.1:9000", "assign")):
        if "192" in where and outside.setting("ip_nonlocal_bind"):
            continue
        status, line = refusal([where], backend, program="chat")
        check(status == 1 and why in line, f"{where}: exit status {status}, {line!r}")


# --- condition --------------------------------------------------------------------------------

def line_of(process):
    check(select.select([process.stdout], [], [], PATIENCE)[0], "prints nothing")
    return process.stdout.readline()


@contextlib.contextmanager
def running(backend, program, *args):
    process = start(list(map(str, args)), backend, None, subprocess.PIPE, program)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


for signum in SIGNALS:
    @test_of_start(f"condition: each task is consumed, once and in order, until {signum.name}")
    def condition_consumes(backend, signum=signum):
        with running(backend, "condition", 3, 20) as program:
            consumed = []
            while len(consumed) < 30:
                line = line_of(program)
                parts = re.fullmatch(r"(producer|consumer \d): task (\d+)\n", line)
                check(parts, f"prints {line!r}")
                if parts[1] != "producer":
                    consumed.append((parts[1], int(parts[2])))
            check([task for _, task in consumed] == list(range(30)), f"consumes {consumed}")
            check(len({who for who, _ in consumed}) == 3, "the consumers do not take turns")
            program.send_signal(signum)
            _, errors = program.communicate(timeout=PATIENCE)
            check((program.returncode, errors) == (0, ""), f"{program.returncode}, {errors!r}")


@test_of_start("condition: a wait that times out is told from one that was notified")
def condition_times_out(backend):
    with running(backend, "condition", 1, 2000) as program:
        lines = [line_of(program) for _ in range(5)]
        check(lines == ["producer: task 0\n", "consumer 1: task 0\n",
                        "consumer 1: nothing to do for 1.5 s\n",
                        "producer: task 1\n", "consumer 1: task 1\n"], f"prints {lines}")
        program.send_signal(signal.SIGINT)


@test_of_start("condition and task_local: bad arguments are refused in one line")
def small_bad_arguments(backend):
    outside.refuses_all([([text], "positive") for text in ("0", "-1", "x", "2x", "")], backend,
                        "condition")
    outside.refuses_all([([text], "positive") for text in ("0", "-1", "x", "2x", "")], backend,
                        "task_local")


# --- task_local -------------------------------------------------------------------------------

@test_of_start("task_local: each task has its value, and its children have it too")
def task_local(backend):
    status, out, errors = outcome(start(["20"], backend, None, subprocess.PIPE, "task_local"))
    check((status, errors) == (0, ""), f"exit status {status}, {errors!r}")
    *lines, last = out.splitlines()
    check(last == "all requests were served", f"ends with {last!r}")
    for number in range(1, 21):
        its = [line.partition(": ")[2] for line in lines if line.startswith(f"request {number}:")]
        check(its == ["begins", "found the order", "found the user", "ends"], f"{number}: {its}")
    check(len(lines) == 80, f"{len(lines)} lines")


# --- proxy ------------------------------------------------------------------------------------

class Target:
    """Where the proxy connects to."""

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE)
        self.address = "%s:%d" % self.listener.getsockname()
        self.accepted = []
        return self

    def __exit__(self, *_):
        for each in (self.listener, *self.accepted):
            each.close()

    def accept(self):
        connection, _ = self.listener.accept()
        connection.settimeout(PATIENCE)
        self.accepted.append(connection)
        return connection

    def pair(self, proxy):
        """The two ends of a new connection through the proxy."""
        client = proxy.connect()
        return client, self.accept()


def proxied(name, *args):
    """Registers a function of a proxy and its target."""
    def add(body):
        def with_proxy(backend):
            with Target() as target, Listening(backend, "proxy", target.address, *args) as proxy:
                body(proxy, target)
                for each in target.accepted:
                    each.close()
        test_of_start("proxy: " + name, BOTH)(with_proxy)
        return body
    return add


def is_reset(connection):
    """Reads to the end, which must not look like a good one."""
    with contextlib.suppress(ConnectionResetError):
        receive(connection, None)
        raise Failed("ends as if everything had come")


def is_refused(proxy):
    """Connects; that succeeds or not, but nothing can come of it."""
    with contextlib.suppress(ConnectionResetError):
        receive(proxy.connect(), None)
        raise Failed("ends as if everything had come")


@test_of_start("proxy: thirty clients get every byte back from echo behind it, then the end")
def proxy_echo(backend):
    rng = random.Random(6)
    with Server(backend) as echo, Listening(backend, "proxy", f"127.0.0.1:{echo.port}") as proxy:
        clients = [proxy.connect() for _ in range(30)]
        for longest in (1, 16385, 100_000):
            converse({client: rng.randbytes(rng.randint(1, longest)) for client in clients})
        converse({client: NOISE[i:i + (1 << 20)] for i, client in enumerate(clients)}, True)
        for client in clients:
            check(receive(client, None) == b"", "bytes nobody sent")
        check(proxy.said() == "", f"says {proxy.said()!r}")


@proxied("either side may end first, and the other goes on")
def proxy_half_close(proxy, target):
    for turn in range(2):
        ends = target.pair(proxy)
        first, second = ends[turn], ends[1 - turn]
        first.sendall(b"the last of the first")
        first.shutdown(socket.SHUT_WR)
        check(receive(second, None) == b"the last of the first", "not all that was sent")
        for text in (b"and yet", NOISE[:500_000], b"the end"):
            second.sendall(text)
            check(receive(first, len(text)) == text, "not what was sent after the end of the other")
        second.close()
        check(receive(first, None) == b"", "bytes nobody sent")


@proxied("a reset of either side is a reset for the other, not an end")
def proxy_reset(proxy, target):
    exchange_between(*target.pair(proxy))  # with one connection open, what is made lazily is made
    before = proxy.fds()
    for turn in range(20):
        ends = target.pair(proxy)
        first, second = ends[turn % 2], ends[1 - turn % 2]
        exchange_between(first, second)
        reset(first)
        is_reset(second)
    eventually(lambda: proxy.fds() == before, "more or fewer descriptors than before")
    exchange_between(*target.pair(proxy))


def exchange_between(one, other):
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"are you there?")
        check(receive(receiver, 14) == b"are you there?", "wrong bytes")


@proxied("a target that refuses: the client is reset, and the cause is said")
def proxy_refused(proxy, target):
    target.listener.close()
    for _ in range(3):
        is_refused(proxy)
    said = proxy.said()
    check(said.count("Connection refused\n") == 3, f"says {said!r}")


@test_of_start("proxy: a target that does not answer costs the client 3 s")
def proxy_no_answer(backend):
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = full.getsockname()
        for _ in range(2):  # its backlog; who comes later is left without an answer
            caller = sockets.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(address)
        with Listening(backend, "proxy", "%s:%d" % address) as proxy:
            begin = time.monotonic()
            is_refused(proxy)
            took = time.monotonic() - begin
            check(2.9 < took < 3 + PATIENCE, f"took {took:.1f} s")
            check("timed out" in proxy.said(), f"says {proxy.said()!r}")


@proxied("a connection that is silent is reset, one that is busy in one direction is not", 1)
def proxy_idle(proxy, target):
    silent, silent_too = target.pair(proxy)
    busy, served = target.pair(proxy)
    for _ in range(12):
        served.sendall(b"x")
        check(receive(busy, 1) == b"x", "wrong byte")
        time.sleep(0.2)
    check(select.select([silent], [], [], 0)[0], "a silent connection lives on")
    is_reset(silent)
    is_reset(silent_too)
    begin = time.monotonic()
    is_reset(busy)
    took = time.monotonic() - begin
    check(0.5 < took < PATIENCE, f"the busy one was reset {took:.1f} s after its last byte")


@proxied("a side that does not read holds up its sender and nobody else, and costs no memory", 2)
def proxy_never_reader(proxy, target):
    pairs = [target.pair(proxy) for _ in range(5)]
    before = proxy.memory()
    stuff([client for client, _ in pairs])
    check(proxy.memory() - before < 4 << 20, f"{proxy.memory() - before} bytes kept")
    exchange_between(*target.pair(proxy))
    for client, server in pairs:  # nothing moves: idle
        is_reset(server)
        with contextlib.suppress(ConnectionError):
            receive(client, None)


@proxied("at most so many connections: the next waits in the backlog", 60, 2)
def proxy_bounded(proxy, target):
    first, second = target.pair(proxy), target.pair(proxy)
    waiting = proxy.connect()
    waiting.sendall(b"and me?")
    eventually(lambda: proxy.backlog() == 1, "does not wait in the backlog")
    exchange_between(*first)
    for each in second:
        each.close()
    served = target.accept()
    check(receive(served, 7) == b"and me?", "wrong bytes")
    exchange_between(waiting, served)


for signum in SIGNALS:
    @proxied(f"{signum.name} lets connections finish")
    def proxy_finishes(proxy, target, signum=signum):
        pairs = [target.pair(proxy) for _ in range(3)]
        proxy.process.send_signal(signum)
        eventually(proxy.refuses, "still accepts")
        target.listener.close()  # which ends what came of asking whether it accepts
        while pairs:
            for pair in pairs:
                exchange_between(*pair)
            check(proxy.process.poll() is None, f"ended with {len(pairs)} connections")
            for each in pairs.pop():
                each.close()
        proxy.ends(within=2)

    @proxied(f"a second signal after {signum.name} ends it at once, by a reset")
    def proxy_second_signal(proxy, target, signum=signum):
        client, server = target.pair(proxy)
        proxy.process.send_signal(signum)
        eventually(proxy.refuses, "still accepts")
        target.listener.close()  # which ends what came of asking whether it accepts
        exchange_between(client, server)
        proxy.process.send_signal(signal.SIGTERM)
        is_reset(client)
        is_reset(server)
        proxy.ends(within=2)


@test_of_start("proxy: bad arguments are refused in one line")
def proxy_bad_arguments(backend):
    good = ["127.0.0.1:0", "127.0.0.1:9"]
    bad = [(["nonsense"], "address"), (["127.0.0.1"], "port"), (good[:1] + ["nonsense"], "address")]
    bad += [(good + [text], "Invalid argument") for text in ("0", "-1", "x", "4x", "")]
    bad += [(good + ["5", text], "Invalid argument") for text in ("0", "-1", "x", "4x", "")]
    for args, names in bad:
        status, line = refusal(args, backend, program="proxy")
        check(status == 1 and names in line, f"{args}: exit status {status}, {line!r}")


if __name__ == "__main__":
    sys.exit(outside.main(("echo", "chat", "condition", "proxy", "task_local")))
