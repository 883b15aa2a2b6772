"""The embedded zero-shot model: a genuine open_clip CLIP, small enough to train on a laptop.

The files beside this one are open_clip's own `local-dir:` layout; NOTE.md describes how the weights
were made. `bpe.txt.gz` has the first merges of CLIP's vocabulary, so that most tokens occur in
pre-training: of all 49,408 nearly all would stay untrained, and random texts would collapse onto
one direction.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
