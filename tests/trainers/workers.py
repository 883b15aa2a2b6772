"""Two processes of one group (gloo, on the CPU) that do what tests ask them to.

They import PyTorch once for all tests, which takes longer than most of these.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

NUMBER = 2
PATIENCE_S = 300
"""By then a job has ended, or its workers wait for each other for ever."""


class TwoWorkers:
    """The two, for as long as the block lasts."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends, self._processes = [], []
        for rank in range(NUMBER):
            here, there = context.Pipe()
            arguments = (rank, str(folder / "store"), there)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            self._ends.append(here)
            self._processes.append(process)

    def __enter__(self) -> TwoWorkers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.kill()  # there is nothing that they would have to put in order
            process.join()

    def __call__(self, job: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the job returns on either, the first one's first.

        Raises:
            RuntimeError: it failed on one of them, or they do not end.
        """
        for end in self._ends:
            end.send((job, arguments))
        answers = []
        for rank, end in enumerate(self._ends):
            if not end.poll(PATIENCE_S):
                raise RuntimeError(f"worker {rank} does not end")
            failure, answer = end.recv()
            if failure:
                raise RuntimeError(f"worker {rank}:\n{failure}")
            answers.append(answer)
        return answers


def _serve(rank: int, store: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(NUMBER)}
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, NUMBER), rank=rank, world_size=NUMBER
    )
    while True:
        try:
            job, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((None, job(*arguments)))
        except BaseException:
            connection.send((traceback.format_exc(), None))
            raise
