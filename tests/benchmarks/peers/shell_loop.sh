#!/bin/sh
# Trials in a shell loop, one process a core: shell_loop.sh FOLDER < OPTIONS
# Each line of the standard input has the options of one trial, such as --lr 6e-4 --reg-weight 1.
cores=$(nproc) # before the next line, which nproc obeys
export OMP_NUM_THREADS=1
exec xargs -L 1 -P "$cores" python -m tests.benchmarks.peers.fine_tune --output "$1"
