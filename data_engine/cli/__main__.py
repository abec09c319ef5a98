from data_engine.cli import command

command()
