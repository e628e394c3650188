"""Simulates the demo of a method, as a recipe of FLARE, or writes its job folder as this folder has it.

Example:
    python jobs/job.py vpt_deep
    python jobs/job.py vpt_deep --export --export-dir my_jobs
"""

import argparse

from nvflare.recipe import SimEnv

from pt_peft_flare.recipe import PeftRecipe


def main() -> None:
    """Simulates a method's demo, or writes its job folder where FLARE's ``--export`` says so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", nargs="?", default="lora_vpt", help="one method, or several joined by '+'")
    parser.add_argument("--num-rounds", type=int, default=3)
    parser.add_argument("--num-clients", type=int, default=2)
    options = parser.parse_args()

    recipe = PeftRecipe(method=options.method, num_rounds=options.num_rounds)
    run = recipe.execute(SimEnv(num_clients=options.num_clients))
    print("results:", run.get_result())


if __name__ == "__main__":
    main()
