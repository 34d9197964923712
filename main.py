"""Train, search, probe or predict: `python main.py --config=configs/quickstart.py --workdir=runs/first`."""

from deblur_mae_jax.commands import cli

if __name__ == "__main__":
    cli.main()
