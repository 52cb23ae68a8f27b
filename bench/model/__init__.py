"""The machine, modelled: what is known without one.

launches.py     what the library would launch: the one place that knows its launcher
compiler.py     those launches compiled, on every core
sass.py         machine code: registers, widths, the calls that instructions were inlined through
paths.py        instructions along one path of a kernel; counts.py: a kernel's row
addresses.py    what warps touch
roofline.py     ``python -m bench roofline``: predicted times
"""
