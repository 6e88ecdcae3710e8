"""An MCP server by the official SDK that stores results and has the daemon delete them.

`lifespan`: the server's lifespan starts and stops the daemon. `lazy`: the first tool call starts it, and
nothing stops it, as OmniMemory's server does.
"""

import json
import logging
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, AsyncIterator

from result_cleaner import ResultCleanupDaemon

try:
    from mcp.server import MCPServer
except ImportError:
    # Before version 2 of the SDK.
    from mcp.server.fastmcp import FastMCP as MCPServer  # type: ignore

logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
mode, directory = sys.argv[1], Path(sys.argv[2])


class Index:
    """The results that there are."""

    def __init__(self) -> None:
        self.paths = {str(path) for path in directory.rglob("*.result.json.lz4")}

    def removed(self, path: Path) -> None:
        self.paths.discard(str(path))


index = Index()
daemon = ResultCleanupDaemon(result_store=index, cache_dir=str(directory), metrics_url=None)


@asynccontextmanager
async def lifespan(server: Any) -> AsyncIterator[None]:
    if mode == "lifespan":
        async with daemon:
            yield
    else:
        yield


server = MCPServer("cached-results", lifespan=lifespan)


@server.tool()
async def store(name: str, life: float) -> str:
    """Store a result that lives so many seconds."""
    await daemon.start()
    result = directory / f"{name}.result.json.lz4"
    result.write_text("the result")
    text = json.dumps({"expires_at": time.time() + life})
    (directory / f"{name}.metadata.json").write_text(text)
    index.paths.add(str(result))
    return str(result)


@server.tool()
async def results() -> str:
    """List the results that there are, and the daemon's figures."""
    return json.dumps({"results": sorted(index.paths), "stats": daemon.get_stats()})


if __name__ == "__main__":
    server.run("stdio")
