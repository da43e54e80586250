"""The routes, one module per concern; each holds a router and nothing else."""
