"""The main job from end to end on a real student, in one command."""

from export.demo.run import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
