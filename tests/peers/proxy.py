"""A bad network between a program and its server: forwards TCP connections, badly when told to.

    proxy.py MODE_FILE LISTEN_IP SERVER_IP PORT[-LAST]

Listens on each of the ports and connects to the same of the server, or with PORT:SERVER_PORT to another. The file says
what it does from the moment that it is read, about every 20 ms:

    forward    all bytes, at once
    stop       nothing is forwarded, and nobody is told: what comes waits
    dribble    one byte every 10 ms, each way
    cut        the next chunk of more than one byte is forwarded by half, and then the connection is reset
    refuse     connections are reset, new ones at once

Prints `ready` when it listens. Standard library alone; one thread, so nothing of it can hang.
"""
import os
import selectors
import socket
import struct
import sys
import time

CHUNK = 65536
WAITING_MAX = 4 << 20  # of bytes that wait; more is left in the sender's kernel, as a stalled peer would


class Half:
    """Bytes from one socket that wait for the other."""

    def __init__(self):
        self.bytes = bytearray()
        self.next_byte = 0.0
        self.ended = False


class Connection:
    def __init__(self, client, server):
        self.sockets = (client, server)
        self.halves = (Half(), Half())  # to the server, to the client

    def reset(self):
        for one in self.sockets:
            try:
                # With this a close is a reset: the peer's next read fails in the middle of whatever it reads.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass
            one.close()

    def read(self):
        for half, source in zip(self.halves, self.sockets):
            while len(half.bytes) < WAITING_MAX and not half.ended:
                try:
                    chunk = source.recv(CHUNK)
                except BlockingIOError:
                    break
                half.ended = not chunk
                half.bytes += chunk

    def write(self, mode, now):
        """False: the connection is to be reset."""
        for half, target in zip(self.halves, self.sockets[::-1]):
            if mode == "stop":
                continue
            if not half.bytes:
                if half.ended:
                    return False
                continue
            count = len(half.bytes)
            if mode == "dribble":
                if now < half.next_byte:
                    continue
                half.next_byte, count = now + 0.01, 1
            if mode == "cut" and count > 1:
                count //= 2
            try:
                sent = target.send(half.bytes[: min(count, CHUNK)])
            except BlockingIOError:
                continue
            del half.bytes[:sent]
            if mode == "cut" and sent:
                return False
        return True


def main():
    mode_file, listen_ip, server_ip, ports = sys.argv[1:5]
    first, _, last = ports.partition("-")
    pairs = [tuple(map(int, (first.split(":") * 2)[:2]))]
    if last:
        pairs = [(port, port) for port in range(int(first), int(last) + 1)]
    listeners = {}
    for port, server_port in pairs:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((listen_ip, port))
        listener.listen(128)
        listener.setblocking(False)
        listeners[listener] = server_port
    print("ready", flush=True)
    connections, mode, looked, parent = [], "forward", 0.0, os.getppid()
    while os.getppid() == parent:
        now = time.monotonic()
        if now - looked > 0.02:
            looked = now
            try:
                with open(mode_file) as file:
                    mode = file.read().strip() or mode
            except OSError:
                pass
        for listener, server_port in listeners.items():
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                continue
            try:
                server = socket.create_connection((server_ip, server_port), 2) if mode != "refuse" else None
            except OSError:
                server = None
            if server is None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                continue
            for one in (client, server):
                one.setblocking(False)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connections.append(Connection(client, server))
        for connection in connections[:]:
            try:
                if mode != "stop":
                    connection.read()
                good = mode != "refuse" and connection.write(mode, now)
            except OSError:
                good = False
            if not good:
                connection.reset()
                connections.remove(connection)
        # A selector of what can be read, made anew: there are few connections.
        if mode in ("stop", "dribble"):
            time.sleep(0.005)
            continue
        with selectors.DefaultSelector() as selector:
            for listener in listeners:
                selector.register(listener, selectors.EVENT_READ)
            for connection in connections:
                for half, source in zip(connection.halves, connection.sockets):
                    if len(half.bytes) < WAITING_MAX:
                        selector.register(source, selectors.EVENT_READ)
            busy = any(half.bytes for connection in connections for half in connection.halves)
            selector.select(0.001 if busy else 0.02)


if __name__ == "__main__":
    main()
