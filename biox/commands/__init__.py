"""Commands of ``python -m biox``, a module each.

A module's ``register(subparsers)`` adds its command to argparse and names the function to run with
``set_defaults(run=...)``; that function takes the parsed arguments and returns the exit status.
Heavy imports stay inside it.
"""
