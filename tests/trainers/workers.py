"""Two processes of one group (gloo, on the CPU) that do what tests ask them to.

They import PyTorch once for all tests, which takes longer than most of these.
"""

import multiprocessing
import os
import traceback

import torch
import torch.distributed as dist

NUMBER = 2
PATIENCE_S = 300
"""By then a job has ended, or its workers wait for each other for ever."""


class TwoWorkers:
    """Two processes, from the first job to `stop`. After a failure, two others take their place."""

    def __init__(self, folder):
        self._folder, self._started = folder, 0
        self._ends = []
        self._processes = []

    def __call__(self, job, *arguments):
        """What the job returns on either, the first one's first.

        Raises:
            RuntimeError: it failed on one of them, or they do not end.
        """
        if not self._processes:
            self._start()
        try:
            for end in self._ends:
                end.send((job, arguments))
            return [self._answer(rank) for rank in range(NUMBER)]
        except BaseException:
            self.stop()  # the other one may wait for ever
            raise

    def _answer(self, rank):
        if not self._ends[rank].poll(PATIENCE_S):
            raise RuntimeError(f"worker {rank} does not end")
        failure, answer = self._ends[rank].recv()
        if failure:
            raise RuntimeError(f"worker {rank}:\n{failure}")
        return answer

    def _start(self):
        context = multiprocessing.get_context("spawn")
        store = str(self._folder / f"store{self._started}")
        self._started += 1
        for rank in range(NUMBER):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, store, there), daemon=True)
            process.start()
            self._ends.append(here)
            self._processes.append(process)

    def stop(self):
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.kill()  # there is nothing that they would have to put in order
            process.join()
        self._ends, self._processes = [], []


def _serve(rank, store, connection):
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
