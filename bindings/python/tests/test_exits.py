"""Programs that end without a stop, however they end: nothing is lost and nothing hangs."""

import re
import signal
import socket
import time

import pytest

from conftest import Cache, Finished, RunProgram
from metrics import MetricsService

#: Starts, deletes one result, and has its figures wait for the next report.
BEGIN = """
async def begin():
    global daemon
    daemon = ResultCleanupDaemon(cache_dir=CACHE, metrics_url=os.environ["METRICS"])
    await daemon.start()
    await until(lambda: daemon.cleanup_count == 1)
    for name in ["first", "second"]:
        publish(name, 1.5)
        await until(lambda: not (CACHE / f"{name}.result.json.lz4").exists())
    await until(lambda: daemon.total_deleted == 2)
    print("ready", flush=True)
"""

ENDS = {
    "main returns": "asyncio.run(begin())",
    "sys.exit in the loop": """
async def main():
    await begin()
    sys.exit(0)
asyncio.run(main())
""",
    "the loop is never closed": """
import warnings
warnings.simplefilter("ignore")
logging.getLogger("asyncio").disabled = True
loop = asyncio.new_event_loop()
loop.run_until_complete(begin())
""",
    "the loop is closed under it": """
logging.getLogger("asyncio").disabled = True
loop = asyncio.new_event_loop()
loop.run_until_complete(begin())
loop.close()
""",
    "main is cancelled": """
async def main():
    await begin()
    asyncio.current_task().cancel()
    await asyncio.sleep(60)
try:
    asyncio.run(main())
except asyncio.CancelledError:
    print("cancelled")
""",
    "an exception ends it": """
async def main():
    await begin()
    raise ValueError("on purpose")
try:
    asyncio.run(main())
except ValueError:
    pass
""",
    "the loop is on a thread that ends": """
thread = threading.Thread(target=lambda: asyncio.run(begin()))
thread.start()
thread.join()
assert not daemon.running
""",
    "the loop is on a daemon thread that goes on": """
async def main():
    await begin()
    await asyncio.sleep(60)
threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
while "daemon" not in globals() or daemon.total_deleted < 2:
    time.sleep(0.01)
""",
}


def assert_nothing_is_lost(metrics: MetricsService, finished: Finished) -> None:
    """The figures were delivered. If the machine was too busy for that within a second, they are logged."""
    logged = re.findall(r"undelivered figures: deleted_count=(\d+)", finished.err)
    assert metrics.total("deleted_count") + sum(map(int, logged)) >= 2, finished.err


@pytest.mark.parametrize("end", list(ENDS))
def test_an_exit_without_a_stop_loses_no_figures(
    cache: Cache, program: RunProgram, end: str
) -> None:
    with MetricsService() as metrics:
        finished = program(BEGIN + ENDS[end], env={"METRICS": metrics.url}).finish()
        assert_nothing_is_lost(metrics, finished)
    assert cache.names() == []
    if "closed" not in end:
        # asyncio itself may write one about a loop that nobody has closed.
        assert "Traceback" not in finished.err, finished.err
    assert "/result_cleaner/" not in finished.err, finished.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_it_is_idle_ends_it_at_once(
    cache: Cache, program: RunProgram, number: signal.Signals
) -> None:
    script = """
    async def main():
        await begin()
        await asyncio.sleep(3600)
    asyncio.run(main())
    """
    with MetricsService() as metrics:
        running = program(BEGIN + script.replace("\n    ", "\n"), env={"METRICS": metrics.url})
        running.wait_for_line("ready")
        running.process.send_signal(number)
        finished = running.finish(code=-number)
        if number == signal.SIGINT:
            assert_nothing_is_lost(metrics, finished)
            assert "✓ Result cleanup daemon stopped" in finished.err


@pytest.mark.parametrize("sweep", ["daemon.sweep()", "daemon._cleanup_expired()", "forever()"])
def test_a_signal_in_a_sweep_ends_it_and_what_is_left_goes_later(
    cache: Cache, program: RunProgram, sweep: str
) -> None:
    for number in range(1000):
        cache.publish(f"{number % 20}/{number}", 1.5)
    script = f"""
async def forever():
    await asyncio.sleep(3600)

async def main():
    daemon = ResultCleanupDaemon(cache_dir=CACHE, metrics_url=None)
    if {sweep.startswith("forever")}:
        await daemon.start()
    sweep = asyncio.ensure_future({sweep})
    while len(list(CACHE.rglob("*.lz4"))) > 950:
        await asyncio.sleep(0)
    print("ready", flush=True)
    await sweep
    print("ready", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""
    running = program(script)
    running.wait_for_line("ready")
    running.process.send_signal(signal.SIGINT)
    running.finish(code=-signal.SIGINT)
    again = program(
        "print(asyncio.run(ResultCleanupDaemon(cache_dir=CACHE)._cleanup_expired())['errors'])"
    )
    assert again.finish().out.strip() == "0"
    assert cache.names() == []


def test_many_exits_while_it_works_never_crash(cache: Cache, program: RunProgram) -> None:
    script = """
    async def main():
        daemon = ResultCleanupDaemon(cache_dir=CACHE, metrics_url=None)
        await daemon.start()
        events = daemon.subscribe()
        for number in range(50):
            publish(str(number), time.time())
        await asyncio.sleep(float(os.environ["DELAY"]))
        if os.environ["EXIT"] == "os._exit":
            os._exit(0)
        sys.exit(0)

    asyncio.run(main())
    """
    programs = [
        program(script, env={"DELAY": str(number * 0.003), "EXIT": end})
        for number in range(5)
        for end in ["sys.exit", "os._exit"]
    ]
    for running in programs:
        running.finish()


def test_leaving_takes_no_longer_than_a_stop_though_the_metrics_service_hangs(
    program: RunProgram,
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        script = """
async def main():
    daemon = ResultCleanupDaemon(cache_dir=CACHE, metrics_url=os.environ["METRICS"])
    await daemon.start()
    await until(lambda: daemon.cleanup_count == 1)
    print("ready", flush=True)

asyncio.run(main())
"""
        running = program(script, env={"METRICS": url})
        running.wait_for_line("ready")
        begin = time.monotonic()
        finished = running.finish()
        # The time-out of a report is 5 s.
        assert "undelivered figures" in finished.err
        assert time.monotonic() - begin < 30
