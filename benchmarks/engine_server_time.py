"""Times what vLLM's API process costs for each request, prompt token and streamed token, on the CPU.

Runs with an interpreter that has vLLM and what its HTTP server needs (uvicorn and others besides the engine's pins):

    python benchmarks/engine_server_time.py --out server.csv

The OpenAI server runs a model of one layer, its engine in a process of its own; clients stream from a third. What is
counted is the CPU time of the API process's threads: per request of one token, by tokens of its prompt (given as
token ids, as text, as a chat message), and per streamed token, by users at a time.
"""

import argparse
import asyncio
import csv
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine_host_time import ENVIRONMENT, FIELDS, MAX_MODEL_TOKENS, Spent, local_text, row, write_model

USERS = (1, 2, 4, 8, 16, 32, 64, 128)
PROMPT_TOKENS = (64, 512, 2048, 8192)
VOCAB = 32000
STREAMED_TOKENS = 100
REQUESTS = 20
REPEATS = 5
START_S = 180.0
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
COMMON = {"model": "m", "stream": True, "temperature": 0.0, "ignore_eos": True}


def cpu_s(pid: int) -> float:
    """CPU time of all threads a process has now [s]."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


async def stream(url: str, body: dict[str, Any], users: int, requests: int) -> None:
    """Streams `requests` answers, `users` at a time."""
    import aiohttp

    left = iter(range(requests))
    connector = aiohttp.TCPConnector(limit=0)

    async def user(session: aiohttp.ClientSession) -> None:
        for _ in left:
            async with session.post(url, json=body) as answer:
                answer.raise_for_status()
                async for _line in answer.content:
                    pass

    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(user(session) for _ in range(users)))


def load(pid: int, url: str, body: dict[str, Any], counts: tuple[int, int]) -> list[Spent]:
    """Time of the API process for each of several loads, after one that warms it; `counts` is users and requests."""
    spent = []
    for _ in range(REPEATS + 1):
        start = Spent(cpu_s(pid), time.perf_counter())
        asyncio.run(stream(url, body, *counts))
        spent.append(Spent(cpu_s(pid), time.perf_counter()).plus(start, -1))
    return spent[1:]


def shares(spent: list[Spent], parts: int) -> list[Spent]:
    """Time of one of the equal parts of each load."""
    return [Spent(one.cpu_s / parts, one.wall_s / parts) for one in spent]


def rows(pid: int, url: str, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Requests by prompt, then streamed tokens by users."""
    text = local_text()
    for tokens in PROMPT_TOKENS:
        ids = tokenizer(text[: 8 * tokens])["input_ids"][:tokens]
        piece = tokenizer.decode(ids)
        messages = [{"role": "user", "content": piece}]
        prompts: dict[str, tuple[str, dict[str, Any]]] = {
            "request_ids": ("completions", {"prompt": ids}),
            "request_text": ("completions", {"prompt": piece}),
            "request_chat": ("chat/completions", {"messages": messages}),
        }
        for component, (path, prompt) in prompts.items():
            spent = load(pid, f"{url}/v1/{path}", COMMON | prompt | {"max_tokens": 1}, (1, REQUESTS))
            yield row("server", component, (VOCAB, len(ids)), shares(spent, REQUESTS))
    body = COMMON | {
        "messages": [{"role": "user", "content": "Say it again."}],
        "max_tokens": STREAMED_TOKENS,
    }
    for users in USERS:
        spent = load(pid, f"{url}/v1/chat/completions", body, (users, users))
        yield row("server", "streamed_token", (VOCAB, users), shares(spent, users * STREAMED_TOKENS))


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Waits for a server to answer; raises RuntimeError where it ends or stays silent."""
    end = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError("the server did not start")
        time.sleep(1.0)


def main() -> None:
    """Starts the server, measures it and writes one table."""
    parser = argparse.ArgumentParser(description="Time vLLM's API process.")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    wanted = parser.parse_args()
    from transformers import PreTrainedTokenizerFast

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=2).status == 200
        except (urllib.error.URLError, TimeoutError):
            return False

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), VOCAB)
        template = Path(folder) / "chat.jinja"
        template.write_text(CHAT_TEMPLATE, encoding="utf-8")
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
        command += ["--load-format", "dummy", "--enforce-eager", "--max-model-len", str(MAX_MODEL_TOKENS)]
        command += ["--max-num-seqs", str(max(USERS)), "--port", str(port), "--served-model-name", "m"]
        command += ["--chat-template", str(template), "--disable-uvicorn-access-log"]
        environment = os.environ | ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        server = subprocess.Popen(command, env=environment)
        try:
            wait_until(answers, server)
            found = [*rows(server.pid, url, PreTrainedTokenizerFast.from_pretrained(folder))]
        finally:
            server.terminate()
            server.wait(60)
    with wanted.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    main()
