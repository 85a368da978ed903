"""A server that says what a model predicts in each place of a prompt; no test in here.

By hand, after vLLM's documented ``prompt_logprobs`` and the completions API's ``echo``: on a CPU
there is no server with either to test against.
"""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

MODEL = "teacher"


class Stub:
    """Answers with the exact log-probabilities of a model, of which it lists the most likely.

    Args:
        model: what it runs.
        tokenizer: for the texts of tokens; None says none.
        style: "prompt_logprobs", "echo" or "texts" (echo without token ids).
        most: the most log-probabilities that it lists; more are refused, as by vLLM.
        fail: number of a request from 0 -> (status, body), or None to answer.
    """

    HANGS = object()  # as ``listing``: nothing is sent for a second

    def __init__(self, model, tokenizer=None, *, style="prompt_logprobs", most=10**6, fail=None):
        self.model, self.tokenizer, self.style, self.most = model.eval(), tokenizer, style, most
        self.fail, self.requests = fail or (lambda number: None), []
        self.models, self.lock, self.url = [MODEL], threading.Lock(), None
        self.listing = None  # what is sent instead of a list of models

    def answer(self, body):
        """(status, body) of a request to complete."""
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
        if (failure := self.fail(number)) is not None:
            return failure
        if body["model"] not in self.models:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        return self._completed(body)

    def _completed(self, body):
        asked = "prompt_logprobs" if "prompt_logprobs" in body else "logprobs"
        if body[asked] > self.most:
            text = f"Requested {asked.replace('_', ' ')} of {body[asked]}, which is greater than"
            return 400, {"error": {"message": f"{text} max allowed: {self.most}"}}
        choice = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": None}
        if asked == "prompt_logprobs" and self.style == "prompt_logprobs":
            rows = self._rows(body["prompt"], body[asked])
            choice["prompt_logprobs"] = [None, *map(self._listed, rows)]
        if asked == "logprobs" and self.style in ("echo", "texts"):
            rows = [*self._rows(body["prompt"], body[asked]), {0: -0.5}]  # and of its own token
            names = [None, *({self._name(t): log for t, log in row.items()} for row in rows)]
            texts = ["x"] * len(names)
            choice["logprobs"] = {"tokens": texts, "token_logprobs": [], "top_logprobs": names}
        return 200, {"id": "x", "object": "text_completion", "created": 0, "choices": [choice]}

    def _rows(self, ids, k):
        """For each token but the first, token -> log-probability: the top, and the token itself."""
        with torch.no_grad(), self.lock:
            logs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        rows = []
        for own, row in zip(ids[1:], logs[:-1], strict=True):
            values, tokens = row.topk(min(k, len(row)))
            found = dict(zip(tokens.tolist(), values.tolist(), strict=True))
            rows.append({own: float(row[own]), **found})
        return rows

    def _listed(self, row):
        text = (
            (lambda t: None) if self.tokenizer is None else (lambda t: self.tokenizer.decode([t]))
        )
        return {
            str(token): {"logprob": log, "rank": 1, "decoded_token": text(token)}
            for token, log in row.items()
        }

    def _name(self, token):
        return f"token_id:{token}" if self.style == "echo" else f"text {token}"


@contextmanager
def serving(stub):
    """The stub at an address of this machine, ``stub.url``."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            """Nothing."""

        def do_GET(self):
            listed = [{"id": name, "object": "model"} for name in stub.models]
            if stub.listing is stub.HANGS:
                time.sleep(1.0)
                return
            listing = {"object": "list", "data": listed} if stub.listing is None else stub.listing
            self._send(200, listing)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*stub.answer(body))

        def _send(self, status, body):
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
