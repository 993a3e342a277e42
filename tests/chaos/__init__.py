"""Turnpike under fire: real processes, seeded faults, and a checker that shares no code with what it checks.

    make chaos SEED=7 MINUTES=5

`plan` turns a seed into faults; `supervisor` carries them out on a `site` of real processes under `load`; `witnesses`
holds what the callers, the provider and the tables say afterwards; `checker` compares the three.
"""
