"""The solvers: each makes the rows of a table."""
