"""Start `freshrank serve --no-learn` on a data directory and rank one request over HTTP.

Usage: rank_without_torch.py FRESHRANK DATA_DIR
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

DEADLINE_S = 30.0


def main(freshrank: str, data_dir: str) -> int:
    """Serve, rank, compare, stop."""
    config = Path(data_dir) / "freshrank.yaml"
    command = [freshrank, "serve", "-c", str(config), "--no-learn", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert server.stdout is not None  # noqa: S101
    try:
        base = next(line.split()[-1] for line in server.stdout if "http://" in line)
        answer = rank(base.rstrip("/"))
    finally:
        server.terminate()
        server.wait(20)
    known = [item["item"] for item in answer["items"] if item["known"]]
    print(f"ranked without torch: version {answer['model']['version']}, known items {known}")
    return 0 if known and "untrained" not in answer["degraded"] else 1


def rank(base: str) -> dict:
    """One rank request, repeated until the trained parameters are loaded: base, then deltas."""
    body = {"user": "user-1", "candidates": [{"item": name} for name in sample_items(base)]}
    request = urllib.request.Request(  # noqa: S310
        f"{base}/v1/rank",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(request) as response:  # noqa: S310
                answer = json.load(response)
            if "untrained" not in answer["degraded"] or time.monotonic() > deadline:
                return answer
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def sample_items(base: str) -> list[str]:
    """Items the entity view knows."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{base}/v1/stats") as response:  # noqa: S310
            items = json.load(response)["sample"]["items"]
        if items:
            return [item["id"] for item in items]
        time.sleep(0.1)
    raise SystemExit("the entity view stayed empty")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
