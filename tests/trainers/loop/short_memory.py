"""Models that run out of memory above a number of images, for runs on the CPU."""

import torch

from trainers.loop.training import start

EXHAUSTED = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nIt is.")
NO_HANDLE = RuntimeError(
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
)


def limit_images(most, where, error=EXHAUSTED):
    """`start` of a run in which more images at a time raise what PyTorch raises on a GPU.

    After the last step, only the `evaluation` counts.

    Args:
        most: that fit.
        where: in the forward pass of the `student` or of the `teacher`, in the student's
            `backward` pass, or in the `evaluation` of both; the other passes fit.
        error: what is raised.
    """

    def start_limited(*arguments, **options):
        training = start(*arguments, **options)
        encoder = training.setup.zero_shot.visual if where == "teacher" else training.student.visual

        def before(module, inputs):
            counts = training.is_done == (where == "evaluation")
            if counts and len(inputs[0]) > most:
                raise error.with_traceback(None)

        def after(module, inputs, output):
            if output.requires_grad:
                output.register_hook(lambda gradient: before(module, (gradient,)))

        if where == "backward":
            encoder.register_forward_hook(after)
        else:
            encoder.register_forward_pre_hook(before)
        if where == "evaluation":
            training.setup.zero_shot.visual.register_forward_pre_hook(before)
        return training

    return start_limited
