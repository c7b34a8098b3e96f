"""The engine and what people would pick instead, one process a rank, on the same workload (bench/workload.py).

table.py names them, measure.py runs one, `python -m bench.peers NAME` is its command line.
"""
