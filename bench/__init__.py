"""Measure ``triton_stn`` against what else does the job: ``python -m bench``.

    suite/        what is run: cases, θ, passes
    providers/    who runs: the library, eager and compiled PyTorch, other packages
    measure/      how it is measured: against float64 first, then timed
    output/       what is printed: the table, its report, pictures, targets
    model/        the machine, modelled: what compilers and addresses tell without a GPU

A room knows those above it. ``__main__.py`` is the run, ``cli.py`` what commands share, and
``static.py``, ``probe/`` and ``tune/`` are commands of their own.
"""
