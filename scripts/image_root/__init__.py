"""Builds the image without a container builder: runs the steps of the Dockerfile in a clean Debian root. Linux, as
root.

    .venv/bin/python -m scripts.image_root

Prints the contents and size of the image. tests/image uses it. It supports the instructions that the Dockerfile uses
and fails on any other.
"""
