"""The machine, modelled: what is known without one.

launches.py     what the library would launch: the one place that knows its launcher
compiler.py     those launches compiled, on every core
spread.py       the calls whose kernels the static report compiles
sass.py         reading machine code: registers, spills, widths
inlined.py      its instructions, and the calls that they were inlined through
paths.py        instructions along one path of a kernel; counts.py: a kernel's row
addresses.py    what warps touch
roofline.py     ``python -m bench roofline``: predicted times
"""
