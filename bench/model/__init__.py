"""The machine, modelled: what is known without one."""
