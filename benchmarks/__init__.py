"""How fast it is, each figure beside its limit: the same work with no bookkeeping, measured in the same run.

python -m benchmarks P3 P7 --scale 0.2 --json
"""
