"""What happens beside the load. A companion is an async context manager, entered before the first operation and left
after the last."""
