"""How close to the limit that frozen models set: training, selection, memory.

``python -m biox.benchmark`` measures and judges; `biox.bench` does the backbones' forward passes.
Models have random weights and windows are noise, of the shapes of the paper: times depend on shapes
alone. `biox.benchmark.calls` is the one place that names the functions which are timed.
"""
