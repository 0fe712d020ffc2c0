"""The load: what is asked (workloads), when (pacers), the loop that does it (drive), and what is recorded."""
