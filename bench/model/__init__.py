"""The machine, modelled: what is known without one.

launches.py     what the library would launch: the one place that knows its launcher
compiler.py     those launches compiled, on every core
sass.py         reading machine code; counts.py: instructions a pixel
addresses.py    what warps touch
roofline.py     ``python -m bench roofline``: predicted times
"""
