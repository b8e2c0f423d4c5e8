"""The arithmetic of experts and routers: on the CPU, and on a GPU by Triton and grouped products."""
