"""Makes fake tensors of CUDA possible on a PyTorch that was built for CPUs.

Such a build has neither a device guard of CUDA, which views of its tensors need, nor an
accelerator, which backward passes need. A library with both is loaded before PyTorch, so this
module does not import it.
"""

import ctypes
import shutil
import subprocess
import traceback
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

COMPILER = shutil.which("c++")
TORCH = Path(find_spec("torch").origin).parent
HAS_CUDA = bool(list(TORCH.glob("lib/libtorch_cuda*")))
"""With a card or without one, such a build takes no other CUDA (PyTorch 2.13: backward passes on
fake tensors raise that there is no device 0)."""


def build(folder):
    """The compiled library."""
    library, libraries = Path(folder, "guard.so"), TORCH / "lib"
    source, includes = Path(__file__).with_name("guard.cpp"), ["-isystem", TORCH / "include"]
    command = [COMPILER, "-std=c++20", "-shared", "-fPIC", *includes, source, "-o", library]
    linked = ["-L", libraries, f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-lc10"]
    subprocess.run([*command, *linked], check=True)
    return library


def load(library):
    """Load the library into this process, which has not imported PyTorch yet."""
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def forked(function, *arguments):
    """The function in a process that ends with it: a second run in a process may crash it.

    Raises:
        RuntimeError: any error of the function, as text, since some cannot be pickled.
    """
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        pool.submit(_told, function, *arguments).result()


def _told(function, *arguments):
    try:
        function(*arguments)
    except Exception:
        raise RuntimeError(traceback.format_exc()) from None
