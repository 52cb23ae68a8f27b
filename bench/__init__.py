"""Measure ``triton_stn`` against what else does the job: ``python -m bench``.

What is where:

    __main__.py    the run: the suite's tasks, checked, timed and written; cli.py: options, statuses
    cases.py       the cases, θ and tasks; sources.py: what a case's transform is in plain PyTorch
    providers.py   who is measured, and when not; baselines.py: their calls
    launches.py    a task's kernels, compiled ahead
    passes.py      forward, backward, both: as one call; captured in a graph
    oracle.py      right or wrong, by float64
    measure.py     a task's rows; timing.py: how a call is timed
    table.py       the CSV; report.py: Markdown of it; plots.py: pictures; compare.py: of two
    targets.py     what is promised, and whether a table keeps it
    probe/         what a load, an atomic add and a row cost a GPU
    tune/          other launch choices, predicted and measured
    static.py      the compiler's report, which needs no GPU; sass.py: reading machine code
    roofline.py    predicted times; addresses.py: what warps touch
"""
