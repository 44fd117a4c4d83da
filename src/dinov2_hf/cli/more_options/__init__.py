"""
Options of a subcommand beside those of its signature, a file for each that has any.

`more_options(words)` gives them by name, for the words of the command line, on which they may depend. It imports
nothing heavy: `declarations` reads what files of the package declare. `more_help(words)`, where there is one, gives
lines below the options.
"""
