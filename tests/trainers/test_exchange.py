"""A request is answered once, and not by the answer to one before it."""

import asyncio

from trainers.exchange import Exchange, Progressed, Reported, Request

FIRST, SECOND = Request("first", "{}"), Request("second", "{}")


def test_a_request_takes_the_place_of_one_that_is_not_answered():
    async def story():
        exchange, answer = Exchange(), Reported({"step": 6})
        withdrawn = asyncio.create_task(exchange.ask(FIRST))
        assert await exchange.next_request() == FIRST
        assert await exchange.set_progress(FIRST, {"step": [1]})
        assert await exchange.progress() == Progressed({"step": [1]})
        asked = asyncio.create_task(exchange.ask(SECOND))
        await asyncio.sleep(0.01)
        assert not await exchange.set_progress(FIRST, {"step": [2]})
        await exchange.answer(FIRST, Reported({"step": 3}))
        assert not asked.done()
        assert await exchange.next_request() == SECOND
        await exchange.answer(SECOND, answer)
        assert await asked == await withdrawn == answer

    asyncio.run(story())
