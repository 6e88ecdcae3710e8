"""Forks while the daemon runs."""

import pytest

from conftest import Cache, RunProgram

PREPARE = """
import warnings
# Python 3.12 warns of forks in processes that have threads.
warnings.simplefilter("ignore")

def wait_for(child):
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, status

def in_child(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child
"""


def test_a_child_has_no_daemon_and_can_start_its_own(cache: Cache, program: RunProgram) -> None:
    script = """
def child(daemon):
    assert daemon.running is False and daemon.get_stats()["running"] is False
    assert daemon.total_deleted == 1, "as it was"
    asyncio.run(daemon.stop())
    assert asyncio.run(daemon._cleanup_expired())["errors"] == 0
    other = CACHE / "child"
    other.mkdir()

    async def own():
        own = ResultCleanupDaemon(cache_dir=other, metrics_url=None)
        for each in [own, daemon]:
            async with each:
                assert each.running
                (other / "a.result.json.lz4").write_text("x")
                (other / "a.metadata.json").write_text('{"expires_at": 1.5}')
                await until(lambda: not list(other.iterdir()))

    asyncio.run(own())
    assert threading.active_count() == 1

async def main():
    daemon = ResultCleanupDaemon(cache_dir=CACHE, metrics_url=None)
    await daemon.start()
    publish("before", 1.5)
    await until(lambda: daemon.total_deleted == 1)
    pid = in_child(lambda: child(daemon))
    await asyncio.get_running_loop().run_in_executor(None, wait_for, pid)
    assert daemon.running
    publish("after", 1.5)
    await until(lambda: not (CACHE / "after.result.json.lz4").exists())
    await daemon.stop()

asyncio.run(main())
"""
    program(PREPARE + script).finish()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_multiprocessing_pool_while_it_runs(
    cache: Cache, program: RunProgram, method: str
) -> None:
    script = f"""
import concurrent.futures, multiprocessing

async def main():
    daemon = ResultCleanupDaemon(cache_dir=CACHE, metrics_url=None)
    async with daemon:
        loop = asyncio.get_running_loop()
        context = multiprocessing.get_context("{method}")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            for number in range(20):
                publish(str(number), time.time() + 0.05)
            work = [loop.run_in_executor(pool, pow, 2, number) for number in range(50)]
            assert await asyncio.gather(*work) == [2**number for number in range(50)]
        await until(lambda: daemon.total_deleted == 20)

asyncio.run(main())
"""
    program(PREPARE + script).finish()
    assert cache.names() == []


def test_hundreds_of_forks_while_it_works(cache: Cache, program: RunProgram) -> None:
    script = """
def child(daemon):
    assert not daemon.running
    daemon.get_stats()
    if os.getpid() % 4 == 0:
        asyncio.run(ResultCleanupDaemon(cache_dir=CACHE / "absent")._cleanup_expired())

async def main():
    logging.getLogger("result_cleaner").setLevel(logging.DEBUG)
    logging.getLogger().handlers[0].setStream(open(os.devnull, "w"))
    removed = []
    class Store:
        def removed(self, path):
            removed.append(path)
    daemon = ResultCleanupDaemon(Store(), cache_dir=CACHE, metrics_url=None)
    await daemon.start()
    events = daemon.subscribe()
    loop = asyncio.get_running_loop()
    for number in range(100):
        for name in range(5):
            publish(f"{number}-{name}", time.time())
        pid = in_child(lambda: child(daemon))
        await loop.run_in_executor(None, wait_for, pid)
    await until(lambda: len(removed) == 500)
    await daemon.stop()

asyncio.run(main())
"""
    program(PREPARE + script).finish()
    assert cache.names() == []


def test_another_thread_asks_for_stats_while_a_thread_forks(
    cache: Cache, program: RunProgram
) -> None:
    script = """
over = False

def ask(daemon):
    while not over:
        daemon.get_stats()

async def main():
    global over
    daemon = ResultCleanupDaemon(cache_dir=CACHE, metrics_url=None)
    async with daemon:
        threads = [threading.Thread(target=ask, args=[daemon]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(50):
            publish("a", time.time())
            wait_for(in_child(daemon.get_stats))
            await asyncio.sleep(0)
        over = True
        for thread in threads:
            thread.join()

asyncio.run(main())
"""
    program(PREPARE + script).finish()
