"""`python -m eventcore_lab.monitor`: see process.py."""

from eventcore_lab.monitor.process import run_process

if __name__ == "__main__":
    run_process()
