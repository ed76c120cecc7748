"""Kernels that save time or memory on this processor and move no number beyond rounding.

``ON`` is the one switch: without it every function here is the plain formula that stands in it.
"""

ON = True
