"""How the simulator's functions are compiled (numba); docs/simulator.md says what to heed."""

from typing import Any

import numba

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
lean: Any = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload]
"""For functions that allocate nothing and return numbers alone: without counting references. To count those to the
fifty arrays of a frame and its truth at every call took nine tenths of a step's time."""
woven: Any = numba.njit(inline="always", nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload]
"""As ``lean``, but repeated wherever it is called: calls of what every step needs cost as much as what it does."""
threaded = numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
