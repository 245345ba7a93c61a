"""What the devices do: compiled programs, and where their arrays live."""
