"""The sub-commands of `lunar-stereo`: one module each, with `add_parser` and `run`.

`add_parser(subparsers)` declares the arguments and sets the default `run`; `run(args) -> int` does
the work and returns the exit status. Heavy imports go inside `run`, so that `--help` is quick.
"""
