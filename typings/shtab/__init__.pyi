import argparse

FILE: dict[str, str]

def complete(parser: argparse.ArgumentParser, shell: str = "bash") -> str: ...
