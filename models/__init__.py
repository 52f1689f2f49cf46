"""What petavoxel computes: networks, kernels and metrics in numpy, numba and torch; never Ray, storage or HTTP."""
