"""Budgets, the solver, the plan. Plain numbers: no torch, no MNN."""
