"""An MCP server by the official SDK, over stdio, with a real client. Needs Python 3.10."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any, Dict

import pytest

from conftest import PATIENCE, Cache

pytest.importorskip("mcp")

from mcp import ClientSession, StdioServerParameters  # noqa: E402
from mcp.client.stdio import stdio_client  # noqa: E402


async def call(session: ClientSession, tool: str, **arguments: Any) -> str:
    answer = await session.call_tool(tool, arguments)
    return str(answer.content[0].text)  # type: ignore[union-attr]


async def results(session: ClientSession) -> Dict[str, Any]:
    answer: Dict[str, Any] = json.loads(await call(session, "results"))
    return answer


@pytest.mark.parametrize("mode", ["lifespan", "lazy"])
async def test_a_server_deletes_what_its_client_stores(
    cache: Cache, tmp_path: Path, mode: str
) -> None:
    server = StdioServerParameters(
        command=sys.executable,
        args=[str(Path(__file__).with_name("mcp_server.py")), mode, str(cache.path)],
    )
    old = cache.publish("old", 1.5)
    log = tmp_path / "log"
    with log.open("w") as errors:
        async with stdio_client(server, errlog=errors) as (read, write):
            async with ClientSession(read, write) as session:
                await session.initialize()
                running = (await results(session))["stats"]["running"]
                assert running is (mode == "lifespan")
                kept = await call(session, "store", name="kept", life=3600)
                short = await call(session, "store", name="short", life=0.2)
                deadline = time.monotonic() + PATIENCE
                while True:
                    answer = await results(session)
                    deleted = answer["stats"]["total_deleted"]
                    if answer["results"] == [kept] and not old.exists() and deleted == 2:
                        break
                    assert time.monotonic() < deadline, answer
                    await asyncio.sleep(0.01)
                assert answer["stats"]["running"]
                assert not Path(short).exists() and Path(kept).exists()
    text = log.read_text()
    assert text.count("✓ Result cleanup daemon started (runs every 6h)") == 1
    assert text.count("✓ Result cleanup daemon stopped") == 1, text
    assert "Traceback" not in text and "was destroyed" not in text, text
