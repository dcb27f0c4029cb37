from __future__ import annotations

import httpx
from front_server import STREAMED, WHOLE, Posting, front_server, wait_until

from edgekit.server.front import Manners


def test_request_limit__one_too_many_is_told_in_json_and_health_passes() -> None:
    with front_server(Manners(max_requests=2)) as server:
        running = [Posting(server.url, STREAMED), Posting(server.url, STREAMED)]
        server.engine.stream(1)
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=WHOLE)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "too_many_requests"
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
        assert httpx.get(f"{server.url}/metrics").status_code == 200
        server.engine.stream(0).end()
        server.engine.stream(1).end()
        assert [posting.join().status for posting in running] == [200, 200]
        wait_until(lambda: httpx.get(f"{server.url}/v1/models").status_code == 200)
