"""A judge's server written by hand, which can fail in every way; no test in here."""

import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "stub"


def chat(text, **changes):
    """The body of a chat completion, as OpenAI documents it."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    choice |= {key: changes.pop(key) for key in ("finish_reason", "message") if key in changes}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "usage": usage}
    return body | {"choices": [choice]} | changes


def quoted(prompt):
    """Question, first and second answer of a prompt, found by their marked lines."""
    pattern = r"^\[(question|first answer|second answer) (\w+)\]\n(.*?)\n\[end \2\]$"
    return [text for _, _, text in re.findall(pattern, prompt, re.DOTALL | re.MULTILINE)]


def opinion(text):
    """What this judge thinks of an answer: 1 to 9, by hash."""
    return 1 + hashlib.sha256(text.encode()).digest()[0] % 9


def judged(body):
    """The stub's reply: its opinions, and one point more for whoever comes first."""
    prompt = body["messages"][0]["content"]
    if "[question" not in prompt:
        return "ready"
    _, first, second = quoted(prompt)
    return f"The stub has spoken.\nSCORES: {opinion(first) + 1} {opinion(second)}"


class Stub:
    """Answers by ``behave(number, body)``: a text, ``(status, headers, body)``, or an exception.

    Numbers count the requests from 0. ``ConnectionError`` drops the connection and ``TimeoutError``
    sends nothing for two seconds.
    """

    def __init__(self, behave=None):
        self.behave = behave or (lambda number, body: judged(body))
        self.requests, self.headers, self.times = [], [], []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def num_questions(self):
        """Requests that were about a case."""
        return sum("[question" in body["messages"][0]["content"] for body in self.requests)

    def reply(self, body, headers):
        """Status, headers and bytes; None to say nothing and hang up."""
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
        try:
            found = self.behave(number, body)
            status, extra, found = found if isinstance(found, tuple) else (200, {}, found)
        except ConnectionError:
            return None
        except TimeoutError:
            self.closing.wait(2)
            return None
        finally:
            with self.lock:
                self.busy -= 1
        if isinstance(found, str):
            found = chat(found)
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        return status, {"Content-Type": "application/json"} | extra, data


@contextmanager
def served(behave=None):
    """A stub on a free port of this machine: ``(stub, base_url)``."""
    stub = Stub(behave)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.title(): value for name, value in self.headers.items()}
            self.send(stub.reply(body, headers))

        def do_GET(self):
            models = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
            self.send((200, {"Content-Type": "application/json"}, json.dumps(models).encode()))

        def send(self, found):
            self.close_connection = True
            if found is None:
                return
            status, headers, data = found
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # the other side hung up
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stub, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        stub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
