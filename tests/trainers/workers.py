"""Two processes of one group (gloo, on the CPU) that do what tests ask them to.

PyTorch is imported once for both of them and all tests, which takes longer than most of these.
"""

import multiprocessing
import os
import secrets

import torch
import torch.distributed as dist

NUMBER = 2
PATIENCE_S = 300
"""By then a job has ended, or its workers wait for each other for ever."""


class TwoWorkers:
    """Two processes, from the first job to `stop`. After a failure, two others take their place."""

    def __init__(self, folder):
        self._folder, self._workers = folder, []

    def __call__(self, job, *arguments):
        """What the job returns on either, the first one's first; or what one of them raises."""
        if not self._workers:
            context, store = multiprocessing.get_context("forkserver"), secrets.token_hex(4)
            context.set_forkserver_preload(["tests.trainers.curves"])  # both import it at once
            group = [(rank, str(self._folder / store)) for rank in range(NUMBER)]
            self._workers = [context.Pool(1, _join, member) for member in group]
        try:
            answers = [worker.apply_async(job, arguments) for worker in self._workers]
            return [answer.get(PATIENCE_S) for answer in answers]
        except BaseException:
            self.stop()  # the other one may wait for ever
            raise

    def stop(self):
        for worker in self._workers:
            worker.terminate()
        self._workers = []


def _join(rank, store):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(NUMBER)}
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, NUMBER), rank=rank, world_size=NUMBER
    )
