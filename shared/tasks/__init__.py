"""Degradation operators: one physical task a module, differentiable and seeded."""
