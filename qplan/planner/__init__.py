"""Budgets, the exact solver, the plan. Plain numbers: no torch, no MNN."""
