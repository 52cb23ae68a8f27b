"""How it is measured: right or wrong by float64 first, then timed."""
