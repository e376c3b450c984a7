"A visitor who sends the gateway frames that no page sends: the shared Voila answers everybody else throughout."
import asyncio
import json
import random
import struct
from contextlib import suppress

import psutil
import pytest
import websockets
from test_dash import GOOD, VIEWER, Dash, answers, bearer, channel, closed, frame, message
from websockets.frames import Frame, Opcode

from scalai_nb.dash.frames import SIZE

pytestmark = pytest.mark.slow
REASONS = {1002, 1003, 1007, 1008, 1009}
CUT = 1006  # the gateway closed while we still sent: TCP then drops the reason on its way, now and then


def deep(n): return b"[" * n + b"]" * n


def forged(rng: random.Random) -> bytes | str:
    "A message that no page sends."
    _, parts = message(rng.choice(["comm_msg", "kernel_info_request"]), {"comm_id": "a", "data": {}})
    good = frame(*parts)
    ends = list(struct.unpack_from("<6Q", good, 8))
    one = lambda values, i, v: [*values[:i], v, *values[i + 1:]]
    big = rng.choice([2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1])
    header = rng.choice(
        [
            b"",
            b"[]",
            b"null",
            b'{"msg_type": 1}',
            b'{"msg_type": "comm_msg"}',
            b"\xff\xfe",
            deep(9_000),
            b'{"a": NaN}',
            b'{"msg_id": "", "msg_type": "comm_msg", "session": "1"}',
            b'"' + b"x" * 80_000 + b'"',
        ]
    )
    return rng.choice(
        [
            lambda: struct.pack("<Q", big) + bytes(40),  # the one of 48 bytes
            lambda: frame(*parts, count=rng.choice([0, 1, 2, 3, 5, 7, 100, big])),
            lambda: frame(*parts, offsets=one(ends, rng.randrange(6), rng.choice([0, 1, big, len(good) + 1]))),
            lambda: frame(*parts, offsets=ends[::-1]),
            lambda: good[: rng.randrange(len(good))],
            lambda: good + rng.randbytes(rng.randrange(1, 20)),
            lambda: rng.randbytes(rng.choice([0, 1, 7, 8, 48, 500])),
            lambda: frame(parts[0], header, *parts[2:]),
            lambda: frame(
                *parts[:2],
                rng.choice(
                    [b"", b"[]", b"null", b"\xff", deep(9_000), b'{"a": NaN}', b'{"a": "' + b"x" * 80_000 + b'"}']
                ),
                *parts[3:],
            ),
            lambda: frame(rng.choice([b"iopub", b"stdin", b"", b"\xff", b"heartbeat", b"shell\0"]), *parts[1:]),
            lambda: frame(
                *message(
                    rng.choice(["execute_request", "shutdown_request", "input_reply", "debug_request", "x"]),
                    {"code": "1"},
                )[1]
            ),
            lambda: frame(*message("interrupt_request", {}, "control")[1]),
            lambda: json.dumps(
                {
                    "header": json.loads(parts[1]),
                    "parent_header": {},
                    "metadata": {},
                    "content": {},
                    "channel": "shell",
                }
            ),
            lambda: rng.choice(["", "x", "[" * 50_000]),
            lambda: frame(*parts[:-1], b"x" * (11 << 20)),
        ]
        if rng.random() < 0.995
        else [lambda: frame(*parts, *[b""] * 5_000)]
    )()


def raw(rng: random.Random) -> list[bytes]:
    "Bytes under which no WebSocket message lies."
    masked = lambda opcode, data, **more: Frame(opcode, data, **more).serialize(mask=True)
    return rng.choice([
        lambda: [Frame(Opcode.BINARY, b"x" * 60).serialize(mask=False)],
        lambda: [b"\xa2\xbc" + bytes(64)],  # a reserved bit
        lambda: [bytes([0x80 | rng.choice([3, 4, 5, 6, 7, 11, 12, 13, 14, 15]), 0x80]) + bytes(4)],
        lambda: [b"\x82\xff" + struct.pack(">Q", rng.choice([2**62, 2**63, 2**64 - 1])) + bytes(4)],
        lambda: [b"\x89\xfe" + struct.pack(">H", 200) + bytes(204)],  # a ping of 200 bytes
        lambda: [b"\x09\x80" + bytes(4)],  # a ping in pieces
        lambda: [b"\x80\x80" + bytes(4)],  # more of nothing
        lambda: [masked(Opcode.BINARY, b"x", fin=False)] * 2,
        lambda: [masked(Opcode.TEXT, b"\xff\xfe")],
        lambda: [masked(Opcode.CLOSE, b"\x03")],
        lambda: [masked(Opcode.BINARY, b"", fin=False), *[masked(Opcode.CONT, b"", fin=False)] * 3_000],
    ])()


async def one_channel(dash, page, rng: random.Random, counts: dict) -> None:
    "Some good messages, of which each is answered, and one that closes the channel with its reason."
    async with channel(dash, page, f"{rng.getrandbits(64):x}", **bearer(VIEWER)) as ws:
        for _ in range(rng.randrange(3)):
            await answers(ws)
            counts["good"] += 1
        if rng.random() < .3:
            for data in raw(rng): ws.transport.write(data)
        else:
            with suppress(websockets.ConnectionClosed): await ws.send(forged(rng))
        counts["bad"] += 1
        code = await closed(ws)
        assert code in REASONS or code == CUT, code
        counts[code] = counts.get(code, 0) + 1


def memory(dash) -> dict[str, int]:  # bytes
    voila, = dash.called("scalai_nb.dash.voila_server")
    return {"gateway": psutil.Process(dash.process.pid).memory_info().rss, "voila": voila.memory_info().rss}


async def fuzz(dash, page, rng, frames: int, counts: dict) -> None:
    "Eight hostile channels at a time."
    async def hostile(seed):
        own = random.Random(seed)
        while counts["bad"] < frames: await one_channel(dash, page, own, counts)
    async with asyncio.TaskGroup() as group:
        for _ in range(8): group.create_task(hostile(rng.random()))


def test_no_frame_of_a_viewer_reaches_anybody_else(workspace, rounds):
    """Frames that lie about themselves close their own channel; another visitor's page answers throughout, and no
    memory fills."""
    counts, waits = {"good": 0, "bad": 0}, []
    frames, rng = rounds(1_500, soak=100_000), random.Random(13)
    async def another(page):
        async with channel(dash, page, **bearer(dash.token)) as ws:
            while True:
                begun = asyncio.get_running_loop().time()
                await answers(ws, 20)
                waits.append(asyncio.get_running_loop().time() - begun)
                await asyncio.sleep(.25)
    async def attack(mine, other):
        async with asyncio.TaskGroup() as group:  # whoever fails ends all
            watcher = group.create_task(another(other))
            await fuzz(dash, mine, rng, frames // 3, counts)  # until what is read once has been read
            before = memory(dash)
            await fuzz(dash, mine, rng, frames, counts)
            watcher.cancel()
        return before
    with Dash(workspace, good=GOOD) as dash, dash.visitor() as visitor, dash.visitor(VIEWER) as viewer:
        before = asyncio.run(attack(viewer.get("/apps/good?live=1"), visitor.get("/apps/good?live=1")))
        after = memory(dash)
        assert visitor.get("/apps/good?live=1").status_code == 200
        log = dash.log.read_text()
    grown = {name: (after[name] - before[name]) >> 20 for name in after}
    assert max(grown.values()) < 60, grown  # MB
    assert len(waits) > 10 and "Traceback" not in log and "voila does not answer" not in log
    assert counts.get(CUT, 0) <= counts["bad"] * .01, counts
    assert log.count("channel closed") >= counts["bad"] * .9, log[-2000:]
    rounds.note(
        **{k: v for k, v in counts.items() if isinstance(k, str)},
        longest_answer_s=round(max(waits), 2),
        grown_MB=str(grown),
    )


def test_what_a_message_unpacks_to_is_let_go(workspace):
    """Forty messages of some kilobytes that unpack to more than the limit:

    what they unpack to is not kept until memory is tidied."""
    async def bomb(page):
        async with channel(dash, page, **bearer(VIEWER)) as ws:
            with suppress(websockets.ConnectionClosed): await ws.send(bytes(SIZE + 1))
            assert await closed(ws) == 1009
    with Dash(workspace, good=GOOD) as dash, dash.visitor(VIEWER) as viewer:
        page = viewer.get("/apps/good?live=1")
        asyncio.run(bomb(page))
        before = memory(dash)["gateway"]
        for _ in range(40): asyncio.run(bomb(page))
        grown = (memory(dash)["gateway"] - before) / SIZE
        assert grown < 4, grown
