"""Thousands of requests with random cancels, against a running server: is one lost, or mixed up with another?

    python tests/stress_streams.py URL [--requests 2000] [--concurrency 16] [--seed 0] [--api-key KEY]

Ends with status 1 when a request was lost or mixed up, or when the server still works on something
afterwards, or does not say the same as before.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))
from stress import Stress, learn, stress, wait_until_idle


def run(
    url: str,
    *,
    requests: int,
    concurrency: int,
    questions: int = 40,
    seed: int = 0,
    headers: dict[str, str] | None = None,
) -> Stress:
    """Learn, stress, and see that the server is as it was before."""
    asked = learn(url, questions, seed=seed, headers=headers)
    result = stress(url, asked, requests=requests, concurrency=concurrency, seed=seed, headers=headers)
    wait_until_idle(url, headers=headers)
    again = stress(url, asked, requests=questions, concurrency=1, seed=seed + 1, headers=headers)
    result.lost += again.lost
    result.mixed += again.mixed
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--api-key")
    given = parser.parse_args()
    headers = {"Authorization": f"Bearer {given.api_key}"} if given.api_key else None
    result = run(
        given.url, requests=given.requests, concurrency=given.concurrency, seed=given.seed, headers=headers
    )
    for line in [*result.lost, *result.mixed][:20]:
        print(line)
    print(result.summary())
    sys.exit(0 if result.clean else 1)


if __name__ == "__main__":
    main()
