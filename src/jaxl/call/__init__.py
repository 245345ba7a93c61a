"""What a caller asks, up to what programs are fed."""
