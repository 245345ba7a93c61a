"""The arguments of a call, read and checked, up to the inputs of the programs."""
