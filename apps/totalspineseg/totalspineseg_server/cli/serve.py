"""Serve a folder of studies to 3D Slicer, OHIF and other MONAI Label clients."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the server's own arguments."""
    from totalspineseg_server.server import add_arguments as add_server_arguments

    add_server_arguments(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Run the server until it is stopped; return the exit code."""
    from totalspineseg_server.server import serve

    serve(**vars(arguments))
    return 0
