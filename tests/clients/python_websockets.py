"""The story of story.js with `websockets` for Python."""

import json
import signal
import sys
import time
from contextlib import ExitStack, contextmanager

from server import Server
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as open_socket

ANSWER_S = 10
# No JSON library would write this text exactly like this: the server must pass it on byte for byte.
VALUE = r'{"n":12345678901234567890 , "f":1.0, "s":"\u00e9"}'
NOW_US = time.time_ns() // 1000


def connect(url):
    return open_socket(url, open_timeout=ANSWER_S, close_timeout=ANSWER_S, proxy=None)


def op(key, value, timestamp):
    return f'{{"type":"op","payload":{{"key":"{key}","value":{value},"timestamp":{timestamp}}}}}'


def expect_equal(got, wanted):
    assert got == wanted, f"got {got}, not {wanted}"


def expect_message(client, wanted, values):
    """`values` are the texts of values that must stand in the message byte for byte."""
    text = client.recv(timeout=ANSWER_S)
    expect_equal(json.loads(text), wanted)
    for value in values:
        assert value in text, f"the value is not {value} byte for byte: {text}"


def expect_op(client, key, value, timestamp):
    expect_message(client, json.loads(op(key, value, timestamp)), [value])


def expect_init(client, state):
    """`state` maps each key to the text of its value."""
    data = {key: json.loads(value) for key, value in state.items()}
    expect_message(client, {"type": "init", "data": data}, state.values())


@contextmanager
def step(what):
    try:
        yield
    except Exception as error:
        print(f"not ok - python websockets: {what}: {type(error).__name__}: {error}", flush=True)
        # The steps after it build on it and are skipped.
        sys.exit(1)
    print(f"ok - python websockets: {what}", flush=True)


def steps(server, sockets):
    def pair():
        url = server.url(server.token())
        return sockets.enter_context(connect(url)), sockets.enter_context(connect(url))

    def refuses(token):
        try:
            with connect(server.url(token)):
                raise AssertionError("accepted")
        except InvalidStatus as refusal:
            expect_equal(refusal.response.status_code, 401)

    with step("the server starts"):
        server.start()
    with step("without a token: 401"):
        refuses(None)
    with step("with a token: connected, and the init of a new workspace is {}"):
        a, b = pair()
        expect_init(a, {})
        expect_init(b, {})
    with step("A's op reaches B, its value byte for byte"):
        a.send(op("foo", VALUE, NOW_US))
        expect_op(b, "foo", VALUE, NOW_US)
    # All clients see the same order: the next message to A proves which messages A was not sent.
    with step("B's op is the first that A receives: A's own was not sent back"):
        b.send(op("bar", '"from B"', NOW_US))
        expect_op(a, "bar", '"from B"', NOW_US)
    with step("B's losing op is answered with the winner"):
        b.send(op("foo", '"too late"', NOW_US - 1))
        expect_op(b, "foo", VALUE, NOW_US)
    with step("A receives nothing about the losing op"):
        b.send(op("baz", "null", NOW_US))
        expect_op(a, "baz", "null", NOW_US)
    with step("killed with SIGKILL, the server restarts on the same port and data"):
        server.kill()
        a.close()
        b.close()
        server.start()
    with step("init contains the state from before"):
        a, b = pair()
        state = {"foo": VALUE, "bar": '"from B"', "baz": "null"}
        expect_init(a, state)
        expect_init(b, state)
    with step("an op reaches the other client again"):
        a.send(op("foo", "2", NOW_US + 1))
        expect_op(b, "foo", "2", NOW_US + 1)
    with step("with a token signed with another secret: 401"):
        refuses(server.token("some other secret, also 32+ bytes long"))


if __name__ == "__main__":
    # A signal also exits through the `with` block.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with Server(sys.argv[1]) as the_server, ExitStack() as open_sockets:
        steps(the_server, open_sockets)
